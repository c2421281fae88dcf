CREATE OR REPLACE VIEW ops.traces AS
SELECT id AS job_id, run_id, split_part(trace_parent, '-', 2) AS trace_id
FROM jobs
WHERE trace_parent IS NOT NULL;

COMMENT ON VIEW ops.traces IS 'Which OpenTelemetry trace a job''s attempts are parts of.';
COMMENT ON COLUMN ops.traces.job_id IS 'The job.';
COMMENT ON COLUMN ops.traces.run_id IS 'Its run; null for one submitted by itself.';
COMMENT ON COLUMN ops.traces.trace_id IS 'The trace, as 32 hexadecimal digits.';
