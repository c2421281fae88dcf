-- A trace goes on from the call that created a run or a job to the worker, through these columns.

ALTER TABLE runs ADD COLUMN trace_parent text
    CONSTRAINT runs_trace_parent_form CHECK (trace_parent ~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$');
ALTER TABLE jobs ADD COLUMN trace_parent text
    CONSTRAINT jobs_trace_parent_form CHECK (trace_parent ~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$');
COMMENT ON COLUMN runs.trace_parent IS 'W3C traceparent of the call that created it; null without traces.';
COMMENT ON COLUMN jobs.trace_parent IS 'W3C traceparent of the call that created it or its run; null without traces.';

CREATE VIEW ops.traces AS
SELECT id AS job_id, run_id, split_part(trace_parent, '-', 2) AS trace_id
FROM jobs
WHERE trace_parent IS NOT NULL;
COMMENT ON VIEW ops.traces IS 'Which OpenTelemetry trace a job''s attempts are parts of.';
COMMENT ON COLUMN ops.traces.job_id IS 'The job.';
COMMENT ON COLUMN ops.traces.run_id IS 'Its run; null for one submitted by itself.';
COMMENT ON COLUMN ops.traces.trace_id IS 'The trace, as 32 hexadecimal digits.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'inheritune_dashboard') THEN
        GRANT SELECT ON ops.traces TO inheritune_dashboard;
    END IF;
END
$$;
