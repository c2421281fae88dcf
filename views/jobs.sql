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
       END AS progress_percentage, -- least() ignores nulls
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
COMMENT ON COLUMN ops.jobs.job_id IS 'Id of the job.';
COMMENT ON COLUMN ops.jobs.run_id IS 'Id of its run; null for a job that was submitted on its own.';
COMMENT ON COLUMN ops.jobs.run_name IS 'Name of that run.';
COMMENT ON COLUMN ops.jobs.kind IS 'tokenize, slice, train or evaluate.';
COMMENT ON COLUMN ops.jobs.label IS 'Human-readable purpose.';
COMMENT ON COLUMN ops.jobs.model_name IS 'Name of the model that it works on: reference, round 1: 4 layers inherited, ….';
COMMENT ON COLUMN ops.jobs.status IS 'QUEUED, RUNNING, PAUSING, PAUSED, CANCELLING, SUCCEEDED, FAILED or CANCELLED.';
COMMENT ON COLUMN ops.jobs.priority IS 'Jobs with a higher priority are claimed first.';
COMMENT ON COLUMN ops.jobs.attempts IS 'Number of attempts so far.';
COMMENT ON COLUMN ops.jobs.failed_attempts IS 'Number of failed attempts since the last durable progress.';
COMMENT ON COLUMN ops.jobs.max_attempts IS 'Number of failed attempts in a row after which the job fails permanently.';
COMMENT ON COLUMN ops.jobs.worker_id IS 'Id of the last worker that claimed it.';
COMMENT ON COLUMN ops.jobs.progress_done IS 'Units done.';
COMMENT ON COLUMN ops.jobs.progress_total IS 'Total units; 0 while unknown.';
COMMENT ON COLUMN ops.jobs.progress_unit IS 'Unit of progress: tokens, bytes, sequences.';
COMMENT ON COLUMN ops.jobs.progress_percentage IS 'Progress from 0 to 100; null while the total is unknown.';
COMMENT ON COLUMN ops.jobs.units_per_second IS 'Recent rate in units per second.';
COMMENT ON COLUMN ops.jobs.estimated_remaining_seconds IS 'Estimated remaining time in seconds; null while unknown or not running.';
COMMENT ON COLUMN ops.jobs.message IS 'Current activity.';
COMMENT ON COLUMN ops.jobs.error IS 'Why its last attempt failed.';
COMMENT ON COLUMN ops.jobs.spec IS 'What to do, as JSON.';
COMMENT ON COLUMN ops.jobs.outcome IS 'Result, as JSON.';
COMMENT ON COLUMN ops.jobs.not_before IS 'Earliest time of the next claim, while QUEUED.';
COMMENT ON COLUMN ops.jobs.lease_until IS 'When the lease expires unless the worker renews it.';
COMMENT ON COLUMN ops.jobs.heartbeat_at IS 'Last heartbeat of the worker.';
COMMENT ON COLUMN ops.jobs.created_at IS 'When it was submitted.';
COMMENT ON COLUMN ops.jobs.started_at IS 'When it was first claimed.';
COMMENT ON COLUMN ops.jobs.finished_at IS 'When it ended.';
COMMENT ON COLUMN ops.jobs.duration_seconds IS 'Time from the first claim to the end, or until now, in seconds.';
COMMENT ON COLUMN ops.jobs.lost_attempts IS 'Number of attempts since the last durable progress whose worker stopped responding or was killed from outside; these are not failures.';
COMMENT ON COLUMN ops.jobs.crashed_attempts IS 'Number of attempts since the last durable progress whose process caused its own death.';
COMMENT ON COLUMN ops.jobs.waits IS 'Number of attempts since the last durable progress that ended because a dependency (a disk, the object store, the database) was unavailable; these are not failures.';
COMMENT ON COLUMN ops.jobs.waiting_since IS 'Since when it waits for an unavailable dependency; null if it does not wait.';
