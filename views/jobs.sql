CREATE OR REPLACE VIEW ops.jobs AS
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
       extract(epoch FROM coalesce(j.finished_at, now()) - j.started_at)::float8 AS duration_seconds,
       j.lost_attempts,
       j.crashed_attempts,
       j.waits,
       q.waiting_since
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
COMMENT ON COLUMN ops.jobs.failed_attempts IS 'Claims that failed since it last made durable progress.';
COMMENT ON COLUMN ops.jobs.max_attempts IS 'Failed attempts in a row after which it fails for good.';
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
COMMENT ON COLUMN ops.jobs.lost_attempts IS 'Claims whose worker fell silent or was killed from outside since it last made durable progress; not failures.';
COMMENT ON COLUMN ops.jobs.crashed_attempts IS 'Claims whose process died by its own doing since it last made durable progress.';
COMMENT ON COLUMN ops.jobs.waits IS 'Claims that ended because something outside was missing (a disk, the object store, the database) since it last made durable progress; not failures.';
COMMENT ON COLUMN ops.jobs.waiting_since IS 'Since when it waits for something outside; null when it does not.';
