-- What dashboards may read. These views are a public contract (pinned by crates/store/tests/ops_views.rs);
-- the tables behind them may change at any time.

CREATE SCHEMA ops;
COMMENT ON SCHEMA ops IS 'Views for dashboards and people with psql. Columns are only ever added.';

CREATE VIEW ops.jobs AS
SELECT j.id AS job_id,
       j.run_id,
       r.name AS run_name,
       j.kind,
       j.label,
       j.model_name,
       job_status(j.final_status, q.state, q.directive) AS status,
       j.priority,
       j.attempts,
       j.failed_attempts,
       j.max_attempts,
       j.worker_id,
       (p.progress ->> 'done')::numeric AS progress_done,
       (p.progress ->> 'total')::numeric AS progress_total,
       p.progress ->> 'unit' AS progress_unit,
       CASE WHEN (p.progress ->> 'total')::float8 > 0
           THEN least(100, 100 * (p.progress ->> 'done')::float8 / (p.progress ->> 'total')::float8)
       END AS progress_percentage, -- least() passes over nulls
       (p.progress ->> 'per_second')::float8 AS units_per_second,
       CASE WHEN q.state = 'leased' THEN (p.progress ->> 'estimated_remaining_seconds')::float8 END
           AS estimated_remaining_seconds,
       p.progress ->> 'message' AS message,
       j.error,
       j.spec,
       j.outcome,
       q.not_before,
       q.lease_until,
       q.heartbeat_at,
       j.created_at,
       j.started_at,
       j.finished_at,
       extract(epoch FROM coalesce(j.finished_at, now()) - j.started_at)::float8 AS duration_seconds
FROM jobs j
LEFT JOIN job_queue q ON q.job_id = j.id
LEFT JOIN runs r ON r.id = j.run_id
CROSS JOIN LATERAL (SELECT coalesce(q.progress, j.progress) AS progress) p;
COMMENT ON VIEW ops.jobs IS 'Every job with its status and progress.';
COMMENT ON COLUMN ops.jobs.job_id IS 'Names the job.';
COMMENT ON COLUMN ops.jobs.run_id IS 'The run it belongs to; null for one submitted by itself.';
COMMENT ON COLUMN ops.jobs.run_name IS 'That run''s name.';
COMMENT ON COLUMN ops.jobs.kind IS 'tokenize, slice, train or evaluate.';
COMMENT ON COLUMN ops.jobs.label IS 'What it is for.';
COMMENT ON COLUMN ops.jobs.model_name IS 'The model it is about: reference, round 1: 4 layers inherited, ….';
COMMENT ON COLUMN ops.jobs.status IS 'QUEUED, RUNNING, PAUSING, PAUSED, CANCELLING, SUCCEEDED, FAILED or CANCELLED.';
COMMENT ON COLUMN ops.jobs.priority IS 'Higher is claimed first.';
COMMENT ON COLUMN ops.jobs.attempts IS 'Claims so far.';
COMMENT ON COLUMN ops.jobs.failed_attempts IS 'Claims that failed or whose worker fell silent.';
COMMENT ON COLUMN ops.jobs.max_attempts IS 'Failed attempts after which it fails for good.';
COMMENT ON COLUMN ops.jobs.worker_id IS 'The last holder.';
COMMENT ON COLUMN ops.jobs.progress_done IS 'Units done.';
COMMENT ON COLUMN ops.jobs.progress_total IS 'Units in all; 0 while unknown.';
COMMENT ON COLUMN ops.jobs.progress_unit IS 'What is counted: tokens, bytes, sequences.';
COMMENT ON COLUMN ops.jobs.progress_percentage IS 'Done, 0 to 100; null while the total is unknown.';
COMMENT ON COLUMN ops.jobs.units_per_second IS 'Units a second, lately.';
COMMENT ON COLUMN ops.jobs.estimated_remaining_seconds IS 'Estimated time to the end; null while unknown or not running.';
COMMENT ON COLUMN ops.jobs.message IS 'What is going on.';
COMMENT ON COLUMN ops.jobs.error IS 'Why its last attempt failed.';
COMMENT ON COLUMN ops.jobs.spec IS 'What it is to do, as JSON.';
COMMENT ON COLUMN ops.jobs.outcome IS 'What it made, as JSON.';
COMMENT ON COLUMN ops.jobs.not_before IS 'Earliest claim, while QUEUED.';
COMMENT ON COLUMN ops.jobs.lease_until IS 'When it is taken back unless the holder shows life.';
COMMENT ON COLUMN ops.jobs.heartbeat_at IS 'Last sign of life of the holder.';
COMMENT ON COLUMN ops.jobs.created_at IS 'When it was submitted.';
COMMENT ON COLUMN ops.jobs.started_at IS 'When it was first claimed.';
COMMENT ON COLUMN ops.jobs.finished_at IS 'When it ended.';
COMMENT ON COLUMN ops.jobs.duration_seconds IS 'From the first claim to the end, or to now.';

CREATE VIEW ops.runs AS
SELECT r.id AS run_id,
       r.name,
       r.recipe,
       r.status,
       r.state_text AS state,
       r.priority,
       c.round,
       c.layers,
       (r.state ->> 'reference_layers')::integer AS reference_layers,
       m.reference_validation_loss,
       c.validation_loss,
       (r.state #>> '{state,matched}')::boolean AS matched,
       j.job_id AS current_job_id,
       j.label AS current_job,
       j.progress_percentage,
       j.estimated_remaining_seconds,
       n.text AS last_note,
       r.spec,
       r.version,
       r.created_at,
       r.updated_at,
       r.finished_at,
       extract(epoch FROM coalesce(r.finished_at, now()) - r.created_at)::float8 AS duration_seconds
FROM runs r
LEFT JOIN LATERAL (
    SELECT (e #>> '{validation,value}')::float8 AS reference_validation_loss
    FROM jsonb_array_elements(r.state -> 'models') e
    WHERE e #>> '{model,model}' = 'reference'
    LIMIT 1
) m ON true
LEFT JOIN LATERAL (
    SELECT (e #>> '{model,round}')::integer AS round,
           (e #>> '{model,layers}')::integer AS layers,
           (e #>> '{validation,value}')::float8 AS validation_loss
    FROM jsonb_array_elements(r.state -> 'models') e
    WHERE e #>> '{model,model}' = 'candidate'
    ORDER BY (e #>> '{model,round}')::integer DESC
    LIMIT 1
) c ON true
LEFT JOIN LATERAL (
    SELECT o.job_id, o.label, o.progress_percentage, o.estimated_remaining_seconds
    FROM ops.jobs o
    JOIN job_queue q ON q.job_id = o.job_id
    WHERE o.run_id = r.id
    ORDER BY q.seq DESC
    LIMIT 1
) j ON true
LEFT JOIN LATERAL (
    SELECT text FROM run_notes WHERE run_id = r.id ORDER BY seq DESC LIMIT 1
) n ON true;
COMMENT ON VIEW ops.runs IS 'Every run: where it stands and what it is doing now.';
COMMENT ON COLUMN ops.runs.run_id IS 'Names the run.';
COMMENT ON COLUMN ops.runs.name IS 'Name from the recipe.';
COMMENT ON COLUMN ops.runs.recipe IS 'full-data or low-data.';
COMMENT ON COLUMN ops.runs.status IS 'QUEUED, RUNNING, PAUSED, CANCELLING, SUCCEEDED, FAILED or CANCELLED.';
COMMENT ON COLUMN ops.runs.state IS 'Where it stands, in words.';
COMMENT ON COLUMN ops.runs.priority IS 'Priority of its jobs; higher first.';
COMMENT ON COLUMN ops.runs.round IS 'The newest round of growth, counted from 1.';
COMMENT ON COLUMN ops.runs.layers IS 'Layers of that round''s candidate.';
COMMENT ON COLUMN ops.runs.reference_layers IS 'Layers of the reference; null while unknown.';
COMMENT ON COLUMN ops.runs.reference_validation_loss IS 'The benchmark in nats; null before it is measured.';
COMMENT ON COLUMN ops.runs.validation_loss IS 'Validation loss of the newest candidate in nats; null before it is measured.';
COMMENT ON COLUMN ops.runs.matched IS 'Whether the target matches the reference; null before the end or without a benchmark.';
COMMENT ON COLUMN ops.runs.current_job_id IS 'The job in the queue or in a worker''s hands.';
COMMENT ON COLUMN ops.runs.current_job IS 'What that job is for.';
COMMENT ON COLUMN ops.runs.progress_percentage IS 'How far that job is, 0 to 100.';
COMMENT ON COLUMN ops.runs.estimated_remaining_seconds IS 'Estimated time to that job''s end; later jobs are not counted.';
COMMENT ON COLUMN ops.runs.last_note IS 'The newest decision.';
COMMENT ON COLUMN ops.runs.spec IS 'The recipe, as JSON.';
COMMENT ON COLUMN ops.runs.version IS 'Grows with every step of the run.';
COMMENT ON COLUMN ops.runs.created_at IS 'When it was created.';
COMMENT ON COLUMN ops.runs.updated_at IS 'When it last changed.';
COMMENT ON COLUMN ops.runs.finished_at IS 'When it ended.';
COMMENT ON COLUMN ops.runs.duration_seconds IS 'From its creation to its end, or to now.';

CREATE VIEW ops.job_attempts AS
SELECT a.job_id,
       j.run_id,
       j.kind,
       j.label,
       a.attempt,
       a.worker_id,
       a.started_at,
       a.ended_at,
       a.ended,
       a.error,
       extract(epoch FROM coalesce(a.ended_at, now()) - a.started_at)::float8 AS duration_seconds
FROM job_attempts a
JOIN jobs j ON j.id = a.job_id;
COMMENT ON VIEW ops.job_attempts IS 'Every claim of every job.';
COMMENT ON COLUMN ops.job_attempts.job_id IS 'The job.';
COMMENT ON COLUMN ops.job_attempts.run_id IS 'Its run.';
COMMENT ON COLUMN ops.job_attempts.kind IS 'tokenize, slice, train or evaluate.';
COMMENT ON COLUMN ops.job_attempts.label IS 'What the job is for.';
COMMENT ON COLUMN ops.job_attempts.attempt IS 'Counted from 1.';
COMMENT ON COLUMN ops.job_attempts.worker_id IS 'The holder.';
COMMENT ON COLUMN ops.job_attempts.started_at IS 'When the job was claimed.';
COMMENT ON COLUMN ops.job_attempts.ended_at IS 'When the claim ended; null while it holds.';
COMMENT ON COLUMN ops.job_attempts.ended IS 'succeeded, failed, released (given back unfinished) or expired (the holder fell silent).';
COMMENT ON COLUMN ops.job_attempts.error IS 'Why it failed, was given back or was lost.';
COMMENT ON COLUMN ops.job_attempts.duration_seconds IS 'How long it held, or holds by now.';

CREATE VIEW ops.training_curves AS
SELECT j.run_id,
       r.name AS run_name,
       m.job_id,
       coalesce(j.model_name, j.label) AS model_name,
       m.name AS metric,
       m.step,
       m.tokens_seen,
       m.value,
       m.created_at
FROM metric_points m
JOIN jobs j ON j.id = m.job_id
LEFT JOIN runs r ON r.id = j.run_id;
COMMENT ON VIEW ops.training_curves IS 'Points of training curves.';
COMMENT ON COLUMN ops.training_curves.run_id IS 'The run.';
COMMENT ON COLUMN ops.training_curves.run_name IS 'Its name.';
COMMENT ON COLUMN ops.training_curves.job_id IS 'The training job.';
COMMENT ON COLUMN ops.training_curves.model_name IS 'The model, or the job''s label outside a run.';
COMMENT ON COLUMN ops.training_curves.metric IS 'train_loss, validation_loss (nats), learning_rate, gradient_norm, tokens_per_second.';
COMMENT ON COLUMN ops.training_curves.step IS 'Optimizer step.';
COMMENT ON COLUMN ops.training_curves.tokens_seen IS 'Tokens trained on by then.';
COMMENT ON COLUMN ops.training_curves.value IS 'The value.';
COMMENT ON COLUMN ops.training_curves.created_at IS 'When it was written.';

CREATE VIEW ops.scores AS
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

CREATE VIEW ops.workers AS
SELECT a.worker_id,
       count(q.job_id) AS jobs_held,
       count(*) FILTER (WHERE a.ended = 'succeeded') AS jobs_succeeded,
       count(*) FILTER (WHERE a.ended = 'failed') AS jobs_failed,
       count(*) FILTER (WHERE a.ended = 'expired') AS leases_expired,
       array_agg(DISTINCT j.kind ORDER BY j.kind) AS kinds,
       min(a.started_at) AS first_seen_at,
       greatest(max(a.started_at), max(q.heartbeat_at), max(a.ended_at) FILTER (WHERE a.ended <> 'expired')) AS last_seen_at,
       coalesce(bool_or(q.lease_until > now()), false) AS holds_live_lease
FROM job_attempts a
JOIN jobs j ON j.id = a.job_id
LEFT JOIN job_queue q ON q.job_id = a.job_id AND q.lease_token = a.lease_token
GROUP BY a.worker_id;
COMMENT ON VIEW ops.workers IS 'Workers that have claimed something, from their leases and heartbeats. A worker has a new id at every boot.';
COMMENT ON COLUMN ops.workers.worker_id IS 'Names the worker process.';
COMMENT ON COLUMN ops.workers.jobs_held IS 'Jobs in its hands.';
COMMENT ON COLUMN ops.workers.jobs_succeeded IS 'Claims it ended with an outcome.';
COMMENT ON COLUMN ops.workers.jobs_failed IS 'Claims it ended with an error.';
COMMENT ON COLUMN ops.workers.leases_expired IS 'Claims it fell silent in.';
COMMENT ON COLUMN ops.workers.kinds IS 'Kinds of jobs it has claimed.';
COMMENT ON COLUMN ops.workers.first_seen_at IS 'Its first claim.';
COMMENT ON COLUMN ops.workers.last_seen_at IS 'Its last sign of life.';
COMMENT ON COLUMN ops.workers.holds_live_lease IS 'Whether it is working now.';

CREATE VIEW ops.artifacts AS
SELECT a.id AS artifact_id,
       a.kind,
       a.run_id,
       a.job_id,
       j.model_name,
       a.location,
       a.size_bytes,
       a.file_count,
       a.step,
       encode(a.manifest_sha256, 'hex') AS manifest_sha256,
       a.metadata,
       a.created_at,
       a.deleted_at
FROM artifacts a
LEFT JOIN jobs j ON j.id = a.job_id;
COMMENT ON VIEW ops.artifacts IS 'Every published artifact, deleted ones included.';
COMMENT ON COLUMN ops.artifacts.artifact_id IS 'Names the artifact.';
COMMENT ON COLUMN ops.artifacts.kind IS 'token_set, checkpoint, training_state or scores.';
COMMENT ON COLUMN ops.artifacts.run_id IS 'The run it belongs to.';
COMMENT ON COLUMN ops.artifacts.job_id IS 'The job that made it; null for a registered folder.';
COMMENT ON COLUMN ops.artifacts.model_name IS 'The model it is of.';
COMMENT ON COLUMN ops.artifacts.location IS 'Key prefix in the object store, or the URI of a registered folder.';
COMMENT ON COLUMN ops.artifacts.size_bytes IS 'Size of all files in bytes.';
COMMENT ON COLUMN ops.artifacts.file_count IS 'Number of files.';
COMMENT ON COLUMN ops.artifacts.step IS 'Optimizer steps behind it.';
COMMENT ON COLUMN ops.artifacts.manifest_sha256 IS 'Digest of its manifest.json in hex; null for a registered folder.';
COMMENT ON COLUMN ops.artifacts.metadata IS 'What it is, as JSON.';
COMMENT ON COLUMN ops.artifacts.created_at IS 'When it was published.';
COMMENT ON COLUMN ops.artifacts.deleted_at IS 'When it was deleted; null while it is there.';

CREATE VIEW ops.queue AS
SELECT q.kind,
       job_status(NULL, q.state, q.directive) AS status,
       count(*) AS jobs,
       count(*) FILTER (WHERE q.not_before > now()) AS waiting_for_backoff,
       count(*) FILTER (WHERE q.lease_until <= now()) AS leases_overdue,
       min(j.created_at) AS oldest_created_at,
       extract(epoch FROM now() - min(j.created_at))::float8 AS oldest_age_seconds
FROM job_queue q
JOIN jobs j ON j.id = q.job_id
GROUP BY 1, 2;
COMMENT ON VIEW ops.queue IS 'How many jobs wait or run, by kind and status.';
COMMENT ON COLUMN ops.queue.kind IS 'tokenize, slice, train or evaluate.';
COMMENT ON COLUMN ops.queue.status IS 'QUEUED, RUNNING, PAUSING, PAUSED or CANCELLING.';
COMMENT ON COLUMN ops.queue.jobs IS 'Number of jobs.';
COMMENT ON COLUMN ops.queue.waiting_for_backoff IS 'Of these, those that failed and wait for their next attempt.';
COMMENT ON COLUMN ops.queue.leases_overdue IS 'Of these, those whose worker fell silent and that are not taken back yet.';
COMMENT ON COLUMN ops.queue.oldest_created_at IS 'When the oldest was submitted.';
COMMENT ON COLUMN ops.queue.oldest_age_seconds IS 'Its age in seconds.';

-- The dashboards' role. Roles belong to the whole server: another database may have made it, and the migrating role
-- may not be allowed to. Then an administrator makes it; nothing else depends on it.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'inheritune_dashboard') THEN
        CREATE ROLE inheritune_dashboard NOLOGIN;
        ALTER ROLE inheritune_dashboard SET statement_timeout = '5s';
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'role inheritune_dashboard was not made: the migrating role lacks CREATEROLE';
    WHEN duplicate_object OR unique_violation THEN
        NULL; -- made by a migration of another database at the same moment
END
$$;
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'inheritune_dashboard') THEN
        GRANT USAGE ON SCHEMA ops TO inheritune_dashboard;
        GRANT SELECT ON ALL TABLES IN SCHEMA ops TO inheritune_dashboard;
    END IF;
END
$$;
