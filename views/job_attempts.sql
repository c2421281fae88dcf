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

COMMENT ON VIEW ops.job_attempts IS 'Every claim of every job.';
COMMENT ON COLUMN ops.job_attempts.job_id IS 'The job.';
COMMENT ON COLUMN ops.job_attempts.run_id IS 'Its run.';
COMMENT ON COLUMN ops.job_attempts.kind IS 'tokenize, slice, train or evaluate.';
COMMENT ON COLUMN ops.job_attempts.label IS 'What the job is for.';
COMMENT ON COLUMN ops.job_attempts.attempt IS 'Counted from 1.';
COMMENT ON COLUMN ops.job_attempts.worker_id IS 'The holder.';
COMMENT ON COLUMN ops.job_attempts.started_at IS 'When the job was claimed.';
COMMENT ON COLUMN ops.job_attempts.ended_at IS 'When the claim ended; null while it holds.';
COMMENT ON COLUMN ops.job_attempts.ended IS 'succeeded, failed, released (given back unfinished), expired (the holder fell silent), crashed (its process died by its own doing), killed (its process was killed from outside) or unavailable (something outside was missing).';
COMMENT ON COLUMN ops.job_attempts.error IS 'Why it failed, was given back or was lost.';
COMMENT ON COLUMN ops.job_attempts.duration_seconds IS 'How long it held, or holds by now.';
COMMENT ON COLUMN ops.job_attempts.failed_attempts IS 'Failed claims in a row by then, with no durable progress in between; null while it holds, and for a success.';
COMMENT ON COLUMN ops.job_attempts.lost_attempts IS 'Claims in a row by then whose worker fell silent or was killed from outside; not failures.';
COMMENT ON COLUMN ops.job_attempts.crashed_attempts IS 'Claims in a row by then whose process died by its own doing.';
COMMENT ON COLUMN ops.job_attempts.waits IS 'Claims in a row by then that ended because something outside was missing; not failures.';
