-- Evaluations in units that several workers share, and the leaderboard.

CREATE TABLE evaluation_units (
    job_id      uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    unit        integer NOT NULL CHECK (unit >= 0),
    task        text NOT NULL,
    first_item  bigint NOT NULL CHECK (first_item >= 0),
    items       bigint NOT NULL CHECK (items > 0),
    digest      bytea NOT NULL CHECK (octet_length(digest) = 32),
    lease_token bigint,
    worker_id   uuid,
    claimed_at  timestamptz,
    answers     bytea,
    error       text,
    finished_at timestamptz,
    PRIMARY KEY (job_id, unit),
    CONSTRAINT evaluation_units_claimed_by_someone CHECK (
        (lease_token IS NULL) = (worker_id IS NULL) AND (lease_token IS NULL) = (claimed_at IS NULL)),
    CONSTRAINT evaluation_units_finished_with_something CHECK (
        (finished_at IS NOT NULL) = (answers IS NOT NULL OR error IS NOT NULL)),
    CONSTRAINT evaluation_units_answers_or_error CHECK (answers IS NULL OR error IS NULL),
    CONSTRAINT evaluation_units_finished_by_someone CHECK (finished_at IS NULL OR lease_token IS NOT NULL)
);
COMMENT ON TABLE evaluation_units IS 'Parts of evaluate jobs that are measured each for itself: by the job''s own worker, and by others that help it.';
COMMENT ON COLUMN evaluation_units.job_id IS 'The evaluate job.';
COMMENT ON COLUMN evaluation_units.unit IS 'Its place in the job, from 0.';
COMMENT ON COLUMN evaluation_units.task IS 'The task, a benchmark by its own name: piqa, mmlu_anatomy, validation_loss.';
COMMENT ON COLUMN evaluation_units.first_item IS 'The first of its sequences or documents, from 0.';
COMMENT ON COLUMN evaluation_units.items IS 'Number of its sequences or documents.';
COMMENT ON COLUMN evaluation_units.digest IS 'SHA-256 of what is asked; a worker that reads something else may not measure it.';
COMMENT ON COLUMN evaluation_units.lease_token IS 'The lease, of this job or of a helping one, whose worker measures it or did; it is free again when that lease is over without answers.';
COMMENT ON COLUMN evaluation_units.worker_id IS 'That worker.';
COMMENT ON COLUMN evaluation_units.claimed_at IS 'When that worker took it.';
COMMENT ON COLUMN evaluation_units.answers IS 'What the model said, exact to the bit; null before.';
COMMENT ON COLUMN evaluation_units.error IS 'Why it cannot be measured; null if it can.';
COMMENT ON COLUMN evaluation_units.finished_at IS 'When the answers, or the error, came.';

CREATE VIEW ops.evaluation_units AS
SELECT u.job_id,
       j.label,
       u.unit,
       u.task,
       u.first_item,
       u.items,
       CASE
           WHEN u.error IS NOT NULL THEN 'FAILED'
           WHEN u.finished_at IS NOT NULL THEN 'SUCCEEDED'
           WHEN EXISTS (SELECT FROM job_queue q WHERE q.lease_token = u.lease_token AND q.lease_until > now()) THEN 'RUNNING'
           ELSE 'QUEUED'
       END AS status,
       u.worker_id,
       u.claimed_at,
       u.finished_at,
       extract(epoch FROM u.finished_at - u.claimed_at)::float8 AS duration_seconds,
       u.error
FROM evaluation_units u
JOIN jobs j ON j.id = u.job_id;
COMMENT ON VIEW ops.evaluation_units IS 'Parts of evaluate jobs that workers share.';
COMMENT ON COLUMN ops.evaluation_units.job_id IS 'The evaluate job.';
COMMENT ON COLUMN ops.evaluation_units.label IS 'What that job is for.';
COMMENT ON COLUMN ops.evaluation_units.unit IS 'Its place in the job, from 0.';
COMMENT ON COLUMN ops.evaluation_units.task IS 'The task, a benchmark by its own name.';
COMMENT ON COLUMN ops.evaluation_units.first_item IS 'The first of its sequences or documents, from 0.';
COMMENT ON COLUMN ops.evaluation_units.items IS 'Number of its sequences or documents.';
COMMENT ON COLUMN ops.evaluation_units.status IS 'QUEUED, RUNNING, SUCCEEDED or FAILED.';
COMMENT ON COLUMN ops.evaluation_units.worker_id IS 'The last worker that took it.';
COMMENT ON COLUMN ops.evaluation_units.claimed_at IS 'When that worker took it.';
COMMENT ON COLUMN ops.evaluation_units.finished_at IS 'When its answers, or its error, came.';
COMMENT ON COLUMN ops.evaluation_units.duration_seconds IS 'How long it took.';
COMMENT ON COLUMN ops.evaluation_units.error IS 'Why it cannot be measured.';

-- An evaluation's scores while it goes on are points like a training's.
COMMENT ON COLUMN metric_points.name IS 'train_loss, validation_loss (nats), learning_rate, gradient_norm, tokens_per_second, model_flops_utilization (share of the device''s measured matrix product peak), memory_bytes (of the trainer''s process), data_epoch (passes over the training tokens); of an evaluation TASK.METRIC, its score so far, by documents.';
COMMENT ON COLUMN metric_points.step IS 'Optimizer step; of an evaluation, documents so far.';
COMMENT ON COLUMN ops.training_curves.metric IS 'train_loss, validation_loss (nats), learning_rate, gradient_norm, tokens_per_second, model_flops_utilization (share of the device''s measured matrix product peak), memory_bytes (of the trainer''s process), data_epoch (passes over the training tokens); of an evaluation TASK.METRIC, its score so far, by documents.';
COMMENT ON COLUMN ops.training_curves.step IS 'Optimizer step; of an evaluation, documents so far.';

-- Scores that others published ----------------------------------------------------------------------------------------

CREATE TABLE published_scores (
    model  text NOT NULL,
    task   text NOT NULL,
    metric text NOT NULL,
    value  double precision NOT NULL,
    source text NOT NULL,
    PRIMARY KEY (source, model, task, metric)
);
COMMENT ON TABLE published_scores IS 'Scores as they were published, not measured here.';
COMMENT ON COLUMN published_scores.model IS 'The model''s name there.';
COMMENT ON COLUMN published_scores.task IS 'The task by the name it has here.';
COMMENT ON COLUMN published_scores.metric IS 'The metric by the name it has here.';
COMMENT ON COLUMN published_scores.value IS 'The value, as a share where it is a percentage there.';
COMMENT ON COLUMN published_scores.source IS 'Where it was published.';

-- arXiv 2404.08634v1, Table 2, in percent there. Its "Winograd" is wsc, its TruthfulQA is truthfulqa_mc2, its MMLU has five shots.
INSERT INTO published_scores (model, task, metric, value, source)
SELECT p.model, p.task, 'acc', p.value / 100, 'arXiv 2404.08634v1, Table 2'
FROM (VALUES
    ('OpenLLaMA-3B (reference)', 'wsc', 63.46), ('OpenLLaMA-3B (reference)', 'piqa', 74.97),
    ('OpenLLaMA-3B (reference)', 'boolq', 67.18), ('OpenLLaMA-3B (reference)', 'winogrande', 62.27),
    ('OpenLLaMA-3B (reference)', 'logiqa', 28.4), ('OpenLLaMA-3B (reference)', 'mmlu', 27.21),
    ('OpenLLaMA-3B (reference)', 'wnli', 50.7), ('OpenLLaMA-3B (reference)', 'qnli', 51.3),
    ('OpenLLaMA-3B (reference)', 'mnli', 37.3), ('OpenLLaMA-3B (reference)', 'truthfulqa_mc2', 35.0),
    ('Inheritune 1.5B (1B tokens)', 'wsc', 50.96), ('Inheritune 1.5B (1B tokens)', 'piqa', 56.47),
    ('Inheritune 1.5B (1B tokens)', 'boolq', 61.68), ('Inheritune 1.5B (1B tokens)', 'winogrande', 51.69),
    ('Inheritune 1.5B (1B tokens)', 'logiqa', 25.19), ('Inheritune 1.5B (1B tokens)', 'mmlu', 25.67),
    ('Inheritune 1.5B (1B tokens)', 'wnli', 43.66), ('Inheritune 1.5B (1B tokens)', 'qnli', 49.41),
    ('Inheritune 1.5B (1B tokens)', 'mnli', 34.42), ('Inheritune 1.5B (1B tokens)', 'truthfulqa_mc2', 48.61)
) AS p (model, task, value);

CREATE VIEW ops.leaderboard AS
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
COMMENT ON VIEW ops.leaderboard IS 'The newest score of every model in every task and metric, and published ones, which were not measured here.';
COMMENT ON COLUMN ops.leaderboard.model IS 'The run and its model, or the evaluation''s label, or the name it was published under.';
COMMENT ON COLUMN ops.leaderboard.published_in IS 'Where it was published; null where it was measured here.';
COMMENT ON COLUMN ops.leaderboard.task IS 'The task: piqa, mmlu, validation_loss, ….';
COMMENT ON COLUMN ops.leaderboard.metric IS 'The metric: acc, acc_norm, perplexity, loss_nats, ….';
COMMENT ON COLUMN ops.leaderboard.value IS 'The value; accuracies from 0 to 1.';
COMMENT ON COLUMN ops.leaderboard.stderr IS 'Its standard error, where it is defined.';
COMMENT ON COLUMN ops.leaderboard.n IS 'Sequences or documents.';
COMMENT ON COLUMN ops.leaderboard.chance IS 'What guessing brings, where there are choices.';
COMMENT ON COLUMN ops.leaderboard.majority IS 'What the best constant answer brings, where there is one.';
COMMENT ON COLUMN ops.leaderboard.chance_p_value IS 'How likely guessing is to come out at least so far from chance.';
COMMENT ON COLUMN ops.leaderboard.parameters IS 'Parameters of the model, tied ones counted once.';
COMMENT ON COLUMN ops.leaderboard.checkpoint IS 'Where the model is.';
COMMENT ON COLUMN ops.leaderboard.job_id IS 'The evaluation.';
COMMENT ON COLUMN ops.leaderboard.run_id IS 'Its run.';
COMMENT ON COLUMN ops.leaderboard.finished_at IS 'When it ended.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'inheritune_dashboard') THEN
        GRANT SELECT ON ALL TABLES IN SCHEMA ops TO inheritune_dashboard;
    END IF;
END
$$;
