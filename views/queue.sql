CREATE OR REPLACE VIEW ops.queue AS
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

COMMENT ON VIEW ops.queue IS 'Number of unfinished jobs by kind and status.';
COMMENT ON COLUMN ops.queue.kind IS 'tokenize, slice, train or evaluate.';
COMMENT ON COLUMN ops.queue.status IS 'QUEUED, RUNNING, PAUSING, PAUSED or CANCELLING.';
COMMENT ON COLUMN ops.queue.jobs IS 'Number of jobs.';
COMMENT ON COLUMN ops.queue.waiting_for_backoff IS 'Number of these jobs that wait for their next attempt.';
COMMENT ON COLUMN ops.queue.leases_overdue IS 'Number of these jobs whose lease has expired and that were not taken back yet.';
COMMENT ON COLUMN ops.queue.oldest_created_at IS 'When the oldest of these jobs was submitted.';
COMMENT ON COLUMN ops.queue.oldest_age_seconds IS 'Age of the oldest of these jobs in seconds.';
