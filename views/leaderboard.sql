CREATE OR REPLACE VIEW ops.leaderboard AS
WITH measured AS (
    SELECT j.id AS job_id,
           j.run_id,
           coalesce('artifact://' || (j.spec #>> '{checkpoint,artifact}'), j.spec #>> '{checkpoint,uri}') AS checkpoint,
           coalesce(r.name || ': ' || j.model_name, j.label) AS model,
           (j.outcome ->> 'parameters')::bigint AS parameters,
           j.finished_at,
           s
    FROM jobs j
    LEFT JOIN runs r ON r.id = j.run_id
    CROSS JOIN LATERAL jsonb_array_elements(j.outcome -> 'scores') s
    WHERE j.kind = 'evaluate' AND j.final_status = 'SUCCEEDED'
), newest AS (
    SELECT DISTINCT ON (checkpoint, s ->> 'task', s ->> 'metric') *
    FROM measured
    ORDER BY checkpoint, s ->> 'task', s ->> 'metric', finished_at DESC, job_id
)
SELECT model,
       NULL::text AS published_in,
       s ->> 'task' AS task,
       s ->> 'metric' AS metric,
       (s ->> 'value')::float8 AS value,
       (s ->> 'stderr')::float8 AS stderr,
       (s ->> 'n')::bigint AS n,
       (s ->> 'chance')::float8 AS chance,
       (s ->> 'majority')::float8 AS majority,
       (s ->> 'chance_p_value')::float8 AS chance_p_value,
       parameters,
       checkpoint,
       job_id,
       run_id,
       finished_at
FROM newest
UNION ALL
SELECT model, source, task, metric, value, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM published_scores;

COMMENT ON VIEW ops.leaderboard IS 'The newest score of every model for every task and metric, and published scores, which were not measured here.';
COMMENT ON COLUMN ops.leaderboard.model IS 'Run and model name, or the label of the evaluation, or the name in the publication.';
COMMENT ON COLUMN ops.leaderboard.published_in IS 'Publication of the score; null if it was measured here.';
COMMENT ON COLUMN ops.leaderboard.task IS 'The task: piqa, mmlu, validation_loss, ….';
COMMENT ON COLUMN ops.leaderboard.metric IS 'The metric: acc, acc_norm, perplexity, loss_nats, ….';
COMMENT ON COLUMN ops.leaderboard.value IS 'The value; accuracies are from 0 to 1.';
COMMENT ON COLUMN ops.leaderboard.stderr IS 'Standard error of the value, if it is defined.';
COMMENT ON COLUMN ops.leaderboard.n IS 'Number of sequences or documents.';
COMMENT ON COLUMN ops.leaderboard.chance IS 'Expected score of random guessing, for tasks with choices.';
COMMENT ON COLUMN ops.leaderboard.majority IS 'Score of the best constant answer, if there is one.';
COMMENT ON COLUMN ops.leaderboard.chance_p_value IS 'Probability that random guessing deviates at least this far from chance.';
COMMENT ON COLUMN ops.leaderboard.parameters IS 'Number of parameters of the model; tied ones count once.';
COMMENT ON COLUMN ops.leaderboard.checkpoint IS 'Location of the model.';
COMMENT ON COLUMN ops.leaderboard.job_id IS 'Id of the evaluate job.';
COMMENT ON COLUMN ops.leaderboard.run_id IS 'Id of its run.';
COMMENT ON COLUMN ops.leaderboard.finished_at IS 'When the evaluation ended.';
