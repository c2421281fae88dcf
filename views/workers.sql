CREATE OR REPLACE VIEW ops.workers AS
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

COMMENT ON VIEW ops.workers IS 'Workers that have claimed a job, derived from leases and heartbeats. A worker has a new id after every start.';
COMMENT ON COLUMN ops.workers.worker_id IS 'Id of the worker process.';
COMMENT ON COLUMN ops.workers.jobs_held IS 'Number of jobs that it holds now.';
COMMENT ON COLUMN ops.workers.jobs_succeeded IS 'Number of attempts that ended with an outcome.';
COMMENT ON COLUMN ops.workers.jobs_failed IS 'Number of attempts that ended with an error.';
COMMENT ON COLUMN ops.workers.leases_expired IS 'Number of attempts in which it stopped responding.';
COMMENT ON COLUMN ops.workers.kinds IS 'Kinds of jobs that it has claimed.';
COMMENT ON COLUMN ops.workers.first_seen_at IS 'When it made its first claim.';
COMMENT ON COLUMN ops.workers.last_seen_at IS 'When it was last active.';
COMMENT ON COLUMN ops.workers.holds_live_lease IS 'Whether it holds a valid lease now.';
