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

COMMENT ON VIEW ops.scores IS 'Every score of every evaluation.';
COMMENT ON COLUMN ops.scores.run_id IS 'Id of the run.';
COMMENT ON COLUMN ops.scores.run_name IS 'Name of the run.';
COMMENT ON COLUMN ops.scores.job_id IS 'Id of the evaluate job.';
COMMENT ON COLUMN ops.scores.model_name IS 'Name of the model; outside of a run, the label of the job.';
COMMENT ON COLUMN ops.scores.task IS 'The task: validation_loss, ….';
COMMENT ON COLUMN ops.scores.metric IS 'The metric: loss_nats, word_perplexity, ….';
COMMENT ON COLUMN ops.scores.value IS 'The value.';
COMMENT ON COLUMN ops.scores.stderr IS 'Standard error of the mean, if it is defined.';
COMMENT ON COLUMN ops.scores.n IS 'Number of sequences or documents.';
COMMENT ON COLUMN ops.scores.parameters IS 'Number of parameters of the model; tied ones count once.';
COMMENT ON COLUMN ops.scores.finished_at IS 'When the evaluation ended.';
