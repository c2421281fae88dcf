CREATE OR REPLACE VIEW ops.traces AS
SELECT id AS job_id, run_id, split_part(trace_parent, '-', 2) AS trace_id
FROM jobs
WHERE trace_parent IS NOT NULL;

COMMENT ON VIEW ops.traces IS 'The OpenTelemetry trace that a job''s attempts belong to.';
COMMENT ON COLUMN ops.traces.job_id IS 'Id of the job.';
COMMENT ON COLUMN ops.traces.run_id IS 'Id of its run; null for a job that was submitted on its own.';
COMMENT ON COLUMN ops.traces.trace_id IS 'Trace id, as 32 hexadecimal digits.';
