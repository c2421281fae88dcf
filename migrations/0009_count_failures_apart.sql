-- Failures, deaths of workers and waits for something outside are counted apart, and only in a row (ADR 16).

ALTER TABLE jobs
    ADD COLUMN lost_attempts    integer NOT NULL DEFAULT 0 CONSTRAINT jobs_lost_attempts_count CHECK (lost_attempts >= 0),
    ADD COLUMN crashed_attempts integer NOT NULL DEFAULT 0 CONSTRAINT jobs_crashed_attempts_count CHECK (crashed_attempts >= 0),
    ADD COLUMN waits            integer NOT NULL DEFAULT 0 CONSTRAINT jobs_waits_count CHECK (waits >= 0);
COMMENT ON COLUMN jobs.max_attempts IS 'Attempts that may fail, with no progress in between, before the job fails for good.';
COMMENT ON COLUMN jobs.failed_attempts IS 'Attempts that failed since the job last made durable progress.';
COMMENT ON COLUMN jobs.lost_attempts IS 'Attempts whose worker fell silent or was killed from outside since then.';
COMMENT ON COLUMN jobs.crashed_attempts IS 'Attempts whose process died by its own doing since then.';
COMMENT ON COLUMN jobs.waits IS 'Attempts since then that ended because something outside was missing: a disk, the object store, the database.';

ALTER TABLE job_queue ADD COLUMN waiting_since timestamptz;
CREATE INDEX job_queue_waiting ON job_queue (waiting_since) WHERE waiting_since IS NOT NULL;
COMMENT ON COLUMN job_queue.waiting_since IS 'When the first of the job''s waits in a row began; null when it waits for nothing outside.';

ALTER TABLE job_attempts
    DROP CONSTRAINT job_attempts_ended_check,
    ADD CONSTRAINT job_attempts_ended_check
        CHECK (ended IN ('succeeded', 'failed', 'released', 'expired', 'crashed', 'killed', 'unavailable')),
    ADD COLUMN failed_attempts  integer,
    ADD COLUMN lost_attempts    integer,
    ADD COLUMN crashed_attempts integer,
    ADD COLUMN waits            integer;
COMMENT ON COLUMN job_attempts.ended IS 'succeeded: with an outcome. failed: with an error. released: given back unfinished. expired: the holder fell silent. crashed: its process died by its own doing. killed: its process was killed from outside. unavailable: something outside was missing. Null while it holds.';
COMMENT ON COLUMN job_attempts.failed_attempts IS 'jobs.failed_attempts as this attempt left it; null where it was not counted.';
COMMENT ON COLUMN job_attempts.lost_attempts IS 'jobs.lost_attempts, likewise.';
COMMENT ON COLUMN job_attempts.crashed_attempts IS 'jobs.crashed_attempts, likewise.';
COMMENT ON COLUMN job_attempts.waits IS 'jobs.waits, likewise.';

-- Lost workers were counted as failures until now.
UPDATE jobs j
SET failed_attempts = (SELECT count(*) FROM job_attempts a WHERE a.job_id = j.id AND a.ended = 'failed')
WHERE final_status IS NULL AND failed_attempts > 0;

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
COMMENT ON COLUMN ops.jobs.failed_attempts IS 'Claims that failed since it last made durable progress.';
COMMENT ON COLUMN ops.jobs.max_attempts IS 'Failed attempts in a row after which it fails for good.';
COMMENT ON COLUMN ops.jobs.lost_attempts IS 'Claims whose worker fell silent or was killed from outside since it last made durable progress; not failures.';
COMMENT ON COLUMN ops.jobs.crashed_attempts IS 'Claims whose process died by its own doing since it last made durable progress.';
COMMENT ON COLUMN ops.jobs.waits IS 'Claims that ended because something outside was missing (a disk, the object store, the database) since it last made durable progress; not failures.';
COMMENT ON COLUMN ops.jobs.waiting_since IS 'Since when it waits for something outside; null when it does not.';

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
COMMENT ON COLUMN ops.job_attempts.ended IS 'succeeded, failed, released (given back unfinished), expired (the holder fell silent), crashed (its process died by its own doing), killed (its process was killed from outside) or unavailable (something outside was missing).';
COMMENT ON COLUMN ops.job_attempts.failed_attempts IS 'Failed claims in a row by then, with no durable progress in between; null while it holds, and for a success.';
COMMENT ON COLUMN ops.job_attempts.lost_attempts IS 'Claims in a row by then whose worker fell silent or was killed from outside; not failures.';
COMMENT ON COLUMN ops.job_attempts.crashed_attempts IS 'Claims in a row by then whose process died by its own doing.';
COMMENT ON COLUMN ops.job_attempts.waits IS 'Claims in a row by then that ended because something outside was missing; not failures.';
