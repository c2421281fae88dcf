CREATE OR REPLACE VIEW ops.scores AS
SELECT j.run_id,
       r.name AS run_name,
       j.id AS job_id,
       coalesce(j.model_name, j.label) AS model_name,
       s ->> 'task' AS task,
       s ->> 'metric' AS metric,
       (s ->> 'value')::float8 AS value,
       (s ->> 'stderr')::float8 AS stderr,
       (s ->> 'n')::bigint AS n,
       (j.outcome ->> 'parameters')::bigint AS parameters,
       j.finished_at
FROM jobs j
LEFT JOIN runs r ON r.id = j.run_id
CROSS JOIN LATERAL jsonb_array_elements(j.outcome -> 'scores') s
WHERE j.kind = 'evaluate' AND j.final_status = 'SUCCEEDED';

COMMENT ON VIEW ops.scores IS 'Every number that an evaluation brought.';
COMMENT ON COLUMN ops.scores.run_id IS 'The run.';
COMMENT ON COLUMN ops.scores.run_name IS 'Its name.';
COMMENT ON COLUMN ops.scores.job_id IS 'The evaluation job.';
COMMENT ON COLUMN ops.scores.model_name IS 'The model, or the job''s label outside a run.';
COMMENT ON COLUMN ops.scores.task IS 'The task: validation_loss, ….';
COMMENT ON COLUMN ops.scores.metric IS 'The metric: loss_nats, word_perplexity, ….';
COMMENT ON COLUMN ops.scores.value IS 'The value.';
COMMENT ON COLUMN ops.scores.stderr IS 'Standard error of the mean, where it is defined.';
COMMENT ON COLUMN ops.scores.n IS 'Sequences or documents.';
COMMENT ON COLUMN ops.scores.parameters IS 'Parameters of the model, tied ones counted once.';
COMMENT ON COLUMN ops.scores.finished_at IS 'When the evaluation ended.';
