CREATE OR REPLACE VIEW ops.artifacts AS
SELECT a.id AS artifact_id,
       a.kind,
       a.run_id,
       a.job_id,
       j.model_name,
       a.location,
       a.size_bytes,
       a.file_count,
       a.step,
       encode(a.manifest_sha256, 'hex') AS manifest_sha256,
       a.metadata,
       a.created_at,
       a.deleted_at,
       a.pinned
FROM artifacts a
LEFT JOIN jobs j ON j.id = a.job_id;

COMMENT ON VIEW ops.artifacts IS 'Every published artifact, including deleted ones.';
COMMENT ON COLUMN ops.artifacts.artifact_id IS 'Id of the artifact.';
COMMENT ON COLUMN ops.artifacts.kind IS 'token_set, checkpoint, training_state or scores.';
COMMENT ON COLUMN ops.artifacts.run_id IS 'Id of its run; null outside of a run.';
COMMENT ON COLUMN ops.artifacts.job_id IS 'Id of the job that created it; null for a registered folder.';
COMMENT ON COLUMN ops.artifacts.model_name IS 'Name of the model that it belongs to.';
COMMENT ON COLUMN ops.artifacts.location IS 'Key prefix in the object store, or the URI of a registered folder.';
COMMENT ON COLUMN ops.artifacts.size_bytes IS 'Total size of all files in bytes.';
COMMENT ON COLUMN ops.artifacts.file_count IS 'Number of files.';
COMMENT ON COLUMN ops.artifacts.step IS 'Optimizer step at which it was saved.';
COMMENT ON COLUMN ops.artifacts.manifest_sha256 IS 'SHA-256 of its manifest.json in hex; null for a registered folder.';
COMMENT ON COLUMN ops.artifacts.metadata IS 'Description as JSON.';
COMMENT ON COLUMN ops.artifacts.created_at IS 'When it was published.';
COMMENT ON COLUMN ops.artifacts.deleted_at IS 'When it was deleted; null while it exists.';
COMMENT ON COLUMN ops.artifacts.pinned IS 'Whether it is protected from deletion until it is unpinned.';
