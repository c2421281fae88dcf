CREATE OR REPLACE VIEW ops.runs AS
SELECT r.id AS run_id,
       r.name,
       r.recipe,
       r.status,
       r.state_text AS state,
       r.priority,
       c.round,
       c.layers,
       r.reference_layers,
       m.validation_loss AS reference_validation_loss,
       c.validation_loss,
       r.matched,
       j.job_id AS current_job_id,
       j.label AS current_job,
       j.progress_percentage,
       j.estimated_remaining_seconds,
       n.text AS last_note,
       r.spec,
       r.version,
       r.created_at,
       r.updated_at,
       r.finished_at,
       extract(epoch FROM coalesce(r.finished_at, now()) - r.created_at)::float8 AS duration_seconds
FROM runs r
LEFT JOIN run_models m ON m.run_id = r.id AND m.role = 'reference'
LEFT JOIN LATERAL (
    SELECT round, layers, validation_loss
    FROM run_models
    WHERE run_id = r.id AND role = 'candidate'
    ORDER BY round DESC
    LIMIT 1
) c ON true
LEFT JOIN LATERAL (
    SELECT o.job_id, o.label, o.progress_percentage, o.estimated_remaining_seconds
    FROM ops.jobs o
    JOIN job_queue q ON q.job_id = o.job_id
    WHERE o.run_id = r.id
    ORDER BY q.seq DESC
    LIMIT 1
) j ON true
LEFT JOIN LATERAL (
    SELECT text FROM run_notes WHERE run_id = r.id ORDER BY seq DESC LIMIT 1
) n ON true;

COMMENT ON VIEW ops.runs IS 'Every run with its state and current job.';
COMMENT ON COLUMN ops.runs.run_id IS 'Id of the run.';
COMMENT ON COLUMN ops.runs.name IS 'Name from the recipe.';
COMMENT ON COLUMN ops.runs.recipe IS 'full-data or low-data.';
COMMENT ON COLUMN ops.runs.status IS 'QUEUED, RUNNING, PAUSED, CANCELLING, SUCCEEDED, FAILED or CANCELLED.';
COMMENT ON COLUMN ops.runs.state IS 'Human-readable state.';
COMMENT ON COLUMN ops.runs.priority IS 'Priority of its jobs; higher ones are claimed first.';
COMMENT ON COLUMN ops.runs.round IS 'Newest round of growth, from 1.';
COMMENT ON COLUMN ops.runs.layers IS 'Number of layers of that round''s candidate.';
COMMENT ON COLUMN ops.runs.reference_layers IS 'Number of layers of the reference; null while unknown.';
COMMENT ON COLUMN ops.runs.reference_validation_loss IS 'Validation loss of the reference in nats; null before it is measured.';
COMMENT ON COLUMN ops.runs.validation_loss IS 'Validation loss of the newest candidate in nats; null before it is measured.';
COMMENT ON COLUMN ops.runs.matched IS 'Whether the target matches the reference; null before the end, and if the reference was not measured.';
COMMENT ON COLUMN ops.runs.current_job_id IS 'Id of its unfinished job; null if there is none.';
COMMENT ON COLUMN ops.runs.current_job IS 'Human-readable purpose of that job.';
COMMENT ON COLUMN ops.runs.progress_percentage IS 'Progress of that job from 0 to 100.';
COMMENT ON COLUMN ops.runs.estimated_remaining_seconds IS 'Estimated remaining time of that job in seconds; later jobs are not included.';
COMMENT ON COLUMN ops.runs.last_note IS 'The newest decision.';
COMMENT ON COLUMN ops.runs.spec IS 'The recipe, as JSON.';
COMMENT ON COLUMN ops.runs.version IS 'Increases with every step of the run.';
COMMENT ON COLUMN ops.runs.created_at IS 'When it was created.';
COMMENT ON COLUMN ops.runs.updated_at IS 'When it last changed.';
COMMENT ON COLUMN ops.runs.finished_at IS 'When it ended.';
COMMENT ON COLUMN ops.runs.duration_seconds IS 'Time from creation to the end, or until now, in seconds.';
