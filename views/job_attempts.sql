CREATE OR REPLACE VIEW ops.job_attempts AS
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
       extract(epoch FROM coalesce(a.ended_at, now()) - a.started_at)::float8 AS duration_seconds,
       a.failed_attempts,
       a.lost_attempts,
       a.crashed_attempts,
       a.waits
FROM job_attempts a
JOIN jobs j ON j.id = a.job_id;

COMMENT ON VIEW ops.job_attempts IS 'Every attempt (claim) of every job.';
COMMENT ON COLUMN ops.job_attempts.job_id IS 'Id of the job.';
COMMENT ON COLUMN ops.job_attempts.run_id IS 'Id of its run.';
COMMENT ON COLUMN ops.job_attempts.kind IS 'tokenize, slice, train or evaluate.';
COMMENT ON COLUMN ops.job_attempts.label IS 'Human-readable purpose of the job.';
COMMENT ON COLUMN ops.job_attempts.attempt IS 'Number of the attempt, from 1.';
COMMENT ON COLUMN ops.job_attempts.worker_id IS 'Id of the worker.';
COMMENT ON COLUMN ops.job_attempts.started_at IS 'When the job was claimed.';
COMMENT ON COLUMN ops.job_attempts.ended_at IS 'When the attempt ended; null while it runs.';
COMMENT ON COLUMN ops.job_attempts.ended IS 'succeeded, failed, released (returned unfinished), expired (the worker stopped responding), crashed (its process caused its own death), killed (its process was killed from outside) or unavailable (a dependency was unavailable).';
COMMENT ON COLUMN ops.job_attempts.error IS 'Why it failed, was released or was lost.';
COMMENT ON COLUMN ops.job_attempts.duration_seconds IS 'Duration so far, or until the end, in seconds.';
COMMENT ON COLUMN ops.job_attempts.failed_attempts IS 'Number of failed attempts since the last durable progress, counted at the end of this attempt; null while it runs, and for a success.';
COMMENT ON COLUMN ops.job_attempts.lost_attempts IS 'Number of attempts since the last durable progress whose worker stopped responding or was killed from outside, counted like failed_attempts; these are not failures.';
COMMENT ON COLUMN ops.job_attempts.crashed_attempts IS 'Number of attempts since the last durable progress whose process caused its own death, counted like failed_attempts.';
COMMENT ON COLUMN ops.job_attempts.waits IS 'Number of attempts since the last durable progress that ended because a dependency was unavailable, counted like failed_attempts; these are not failures.';
