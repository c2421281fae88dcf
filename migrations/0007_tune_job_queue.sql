-- Room and indexes for a queue under load: an update stays on its page and touches no index, where nothing indexed changes.

-- Every job is updated at its claim and at its end, every attempt at its end.
ALTER TABLE jobs SET (fillfactor = 50);
ALTER TABLE job_attempts SET (fillfactor = 75);
ALTER TABLE job_queue SET (autovacuum_vacuum_cost_delay = 0);

-- One index of the leases, for their fences and for those that run out, in place of two.
ALTER TABLE job_queue DROP CONSTRAINT job_queue_lease_token_key;
DROP INDEX job_queue_leased;
CREATE UNIQUE INDEX job_queue_leases ON job_queue (lease_token) WHERE lease_token IS NOT NULL;

-- In the order of claims, so that a claim can begin anywhere in it.
DROP INDEX job_queue_claimable;
CREATE INDEX job_queue_claimable ON job_queue (kind, (-priority), seq) WHERE state = 'queued';
