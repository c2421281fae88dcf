-- An artifact that somebody pinned is deleted by nothing: neither by the retention of a training, nor by a call.

ALTER TABLE artifacts ADD COLUMN pinned boolean NOT NULL DEFAULT false
    CONSTRAINT artifacts_pinned_is_there CHECK (NOT pinned OR deleted_at IS NULL);
COMMENT ON COLUMN artifacts.pinned IS 'Whether it is kept whatever the retention says, until it is unpinned.';

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
COMMENT ON COLUMN ops.artifacts.pinned IS 'Whether it is kept whatever the retention says, until it is unpinned.';
