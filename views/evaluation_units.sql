CREATE OR REPLACE VIEW ops.evaluation_units AS
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

COMMENT ON VIEW ops.evaluation_units IS 'Units of evaluate jobs, which several workers share.';
COMMENT ON COLUMN ops.evaluation_units.job_id IS 'Id of the evaluate job.';
COMMENT ON COLUMN ops.evaluation_units.label IS 'Human-readable purpose of that job.';
COMMENT ON COLUMN ops.evaluation_units.unit IS 'Index in the job, from 0.';
COMMENT ON COLUMN ops.evaluation_units.task IS 'Name of the task; for a benchmark, the benchmark''s name.';
COMMENT ON COLUMN ops.evaluation_units.first_item IS 'Index of its first sequence or document, from 0.';
COMMENT ON COLUMN ops.evaluation_units.items IS 'Number of its sequences or documents.';
COMMENT ON COLUMN ops.evaluation_units.status IS 'QUEUED, RUNNING, SUCCEEDED or FAILED.';
COMMENT ON COLUMN ops.evaluation_units.worker_id IS 'Id of the last worker that claimed it.';
COMMENT ON COLUMN ops.evaluation_units.claimed_at IS 'When that worker claimed it.';
COMMENT ON COLUMN ops.evaluation_units.finished_at IS 'When its answers or its error were stored.';
COMMENT ON COLUMN ops.evaluation_units.duration_seconds IS 'Time from the claim to the end in seconds.';
COMMENT ON COLUMN ops.evaluation_units.error IS 'Why it could not be measured.';
