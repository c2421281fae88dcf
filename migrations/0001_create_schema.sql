-- Jobs with their leases, runs with their inbox, artifacts and metric points.
-- Small, hot rows that workers fight over (job_queue) stand apart from the history beside them (jobs).

CREATE SEQUENCE lease_tokens AS bigint;
COMMENT ON SEQUENCE lease_tokens IS 'Fences: one number per claim, growing over all jobs.';

-- Runs -----------------------------------------------------------------------------------------------------------

CREATE TABLE runs (
    id          uuid PRIMARY KEY,
    seq         bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    name        text NOT NULL,
    recipe      text NOT NULL CHECK (recipe IN ('full-data', 'low-data')),
    priority    integer NOT NULL DEFAULT 0,
    spec        jsonb NOT NULL,
    state       jsonb NOT NULL,
    state_text  text NOT NULL,
    status      text NOT NULL CHECK (status IN
                    ('QUEUED', 'RUNNING', 'PAUSING', 'PAUSED', 'CANCELLING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    version     bigint NOT NULL DEFAULT 1 CHECK (version >= 1),
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CONSTRAINT runs_finished_when_final
        CHECK ((finished_at IS NOT NULL) = (status IN ('SUCCEEDED', 'FAILED', 'CANCELLED')))
);
CREATE INDEX runs_by_status ON runs (status, seq DESC);
COMMENT ON TABLE runs IS 'Recipes being carried out, one row each.';
COMMENT ON COLUMN runs.id IS 'Names the run.';
COMMENT ON COLUMN runs.seq IS 'Order of creation; lists are paged by it.';
COMMENT ON COLUMN runs.name IS 'Name for people, from the recipe.';
COMMENT ON COLUMN runs.recipe IS 'full-data: grow until the reference is matched. low-data: one round on a part of the data.';
COMMENT ON COLUMN runs.priority IS 'Priority of its jobs; higher first.';
COMMENT ON COLUMN runs.spec IS 'The recipe as it was asked for (domain RunSpec).';
COMMENT ON COLUMN runs.state IS 'All that the run knows (domain Run): rewritten by every step of the run driver.';
COMMENT ON COLUMN runs.state_text IS 'Where it stands, for people.';
COMMENT ON COLUMN runs.status IS 'Public status. QUEUED: not begun. RUNNING. PAUSED: its owner wants it to wait. CANCELLING: told to stop. SUCCEEDED, FAILED, CANCELLED: over.';
COMMENT ON COLUMN runs.version IS 'Grows with every step.';
COMMENT ON COLUMN runs.created_at IS 'When it was created.';
COMMENT ON COLUMN runs.updated_at IS 'When it last changed.';
COMMENT ON COLUMN runs.finished_at IS 'When it ended; null before.';

CREATE TABLE run_inbox (
    seq        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id     uuid NOT NULL REFERENCES runs ON DELETE CASCADE,
    event      jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX run_inbox_by_run ON run_inbox (run_id, seq);
COMMENT ON TABLE run_inbox IS 'Events that the run driver has not folded into their run yet; its transaction deletes them.';
COMMENT ON COLUMN run_inbox.seq IS 'Order of arrival.';
COMMENT ON COLUMN run_inbox.run_id IS 'The run.';
COMMENT ON COLUMN run_inbox.event IS 'What happened (domain RunEvent).';
COMMENT ON COLUMN run_inbox.created_at IS 'When.';

CREATE TABLE run_notes (
    seq        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id     uuid NOT NULL REFERENCES runs ON DELETE CASCADE,
    text       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX run_notes_by_run ON run_notes (run_id, seq);
COMMENT ON TABLE run_notes IS 'What was decided about a run, in order, for people.';
COMMENT ON COLUMN run_notes.seq IS 'Order.';
COMMENT ON COLUMN run_notes.run_id IS 'The run.';
COMMENT ON COLUMN run_notes.text IS 'The decision.';
COMMENT ON COLUMN run_notes.created_at IS 'When it was taken.';

-- Jobs -----------------------------------------------------------------------------------------------------------

CREATE TABLE jobs (
    id              uuid PRIMARY KEY,
    seq             bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    run_id          uuid REFERENCES runs ON DELETE CASCADE,
    model           jsonb,
    model_name      text,
    kind            text NOT NULL CHECK (kind IN ('tokenize', 'slice', 'train', 'evaluate')),
    label           text NOT NULL,
    spec            jsonb NOT NULL,
    priority        integer NOT NULL DEFAULT 0,
    max_attempts    integer NOT NULL CHECK (max_attempts >= 1),
    backoff_ms      bigint NOT NULL CHECK (backoff_ms >= 0),
    backoff_max_ms  bigint NOT NULL CHECK (backoff_max_ms >= 0),
    attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    failed_attempts integer NOT NULL DEFAULT 0 CHECK (failed_attempts BETWEEN 0 AND attempts),
    worker_id       uuid,
    progress        jsonb,
    outcome         jsonb,
    error           text,
    final_status    text CHECK (final_status IN ('SUCCEEDED', 'FAILED', 'CANCELLED')),
    created_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    finished_at     timestamptz,
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT jobs_finished_when_final CHECK ((finished_at IS NOT NULL) = (final_status IS NOT NULL)),
    CONSTRAINT jobs_outcome_when_succeeded CHECK ((outcome IS NOT NULL) = (final_status IS NOT DISTINCT FROM 'SUCCEEDED')),
    CONSTRAINT jobs_error_when_failed CHECK (final_status IS DISTINCT FROM 'FAILED' OR error IS NOT NULL),
    CONSTRAINT jobs_started_when_attempted CHECK ((started_at IS NOT NULL) = (attempts > 0)),
    CONSTRAINT jobs_model_of_run CHECK ((model IS NULL) = (model_name IS NULL) AND (model IS NULL OR run_id IS NOT NULL))
);
CREATE INDEX jobs_by_run ON jobs (run_id, seq DESC) WHERE run_id IS NOT NULL;
CREATE INDEX jobs_by_kind ON jobs (kind, seq DESC);
COMMENT ON TABLE jobs IS 'Every job there ever was. One that is not over has a row in job_queue too, which says where it stands.';
COMMENT ON COLUMN jobs.id IS 'Names the job.';
COMMENT ON COLUMN jobs.seq IS 'Order of submission; the queue and lists go by it.';
COMMENT ON COLUMN jobs.run_id IS 'The run it belongs to; null for one submitted by itself.';
COMMENT ON COLUMN jobs.model IS 'Which of the run''s models it is about (domain Model); null where it is about none.';
COMMENT ON COLUMN jobs.model_name IS 'That model''s name for people.';
COMMENT ON COLUMN jobs.kind IS 'Queue it stands in. tokenize, train: worked by trainers. slice: by slicers. evaluate: by evaluators.';
COMMENT ON COLUMN jobs.label IS 'What it is for, in people''s words.';
COMMENT ON COLUMN jobs.spec IS 'What it is to do (domain JobSpec).';
COMMENT ON COLUMN jobs.priority IS 'Higher is claimed first.';
COMMENT ON COLUMN jobs.max_attempts IS 'Attempts that may fail or be lost before the job fails for good.';
COMMENT ON COLUMN jobs.backoff_ms IS 'Wait before the second attempt in milliseconds; doubles with each further one.';
COMMENT ON COLUMN jobs.backoff_max_ms IS 'Longest wait in milliseconds.';
COMMENT ON COLUMN jobs.attempts IS 'Claims so far.';
COMMENT ON COLUMN jobs.failed_attempts IS 'Claims that failed or whose lease ran out.';
COMMENT ON COLUMN jobs.worker_id IS 'The last holder.';
COMMENT ON COLUMN jobs.progress IS 'Last progress (domain Progress), kept when the job ends; before that see job_queue.';
COMMENT ON COLUMN jobs.outcome IS 'What it made (domain JobOutcome); only when it succeeded.';
COMMENT ON COLUMN jobs.error IS 'Why its last attempt failed; null once it succeeded.';
COMMENT ON COLUMN jobs.final_status IS 'SUCCEEDED: done. FAILED: given up. CANCELLED: no longer wanted. Null until it is over.';
COMMENT ON COLUMN jobs.created_at IS 'When it was submitted.';
COMMENT ON COLUMN jobs.started_at IS 'When it was first claimed.';
COMMENT ON COLUMN jobs.finished_at IS 'When it ended.';
COMMENT ON COLUMN jobs.updated_at IS 'When anything about it last changed, heartbeats aside.';

CREATE TABLE job_queue (
    job_id       uuid PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    kind         text NOT NULL,
    priority     integer NOT NULL,
    seq          bigint NOT NULL,
    state        text NOT NULL CHECK (state IN ('queued', 'leased', 'paused')),
    not_before   timestamptz,
    lease_token  bigint UNIQUE,
    lease_until  timestamptz,
    worker_id    uuid,
    directive    text CHECK (directive IN ('run', 'pause', 'cancel')),
    heartbeat_at timestamptz,
    progress     jsonb,
    CONSTRAINT job_queue_not_before_when_queued CHECK ((state = 'queued') = (not_before IS NOT NULL)),
    CONSTRAINT job_queue_token_when_leased CHECK ((state = 'leased') = (lease_token IS NOT NULL)),
    CONSTRAINT job_queue_until_when_leased CHECK ((state = 'leased') = (lease_until IS NOT NULL)),
    CONSTRAINT job_queue_worker_when_leased CHECK ((state = 'leased') = (worker_id IS NOT NULL)),
    CONSTRAINT job_queue_directive_when_leased CHECK ((state = 'leased') = (directive IS NOT NULL)),
    CONSTRAINT job_queue_heartbeat_when_leased CHECK ((state = 'leased') = (heartbeat_at IS NOT NULL))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
CREATE INDEX job_queue_claimable ON job_queue (kind, priority DESC, seq) WHERE state = 'queued';
CREATE INDEX job_queue_leased ON job_queue (job_id) WHERE state = 'leased';
COMMENT ON TABLE job_queue IS 'The jobs that are not over, in small rows: what workers claim, renew and give back.';
COMMENT ON COLUMN job_queue.job_id IS 'The job.';
COMMENT ON COLUMN job_queue.kind IS 'Copy of jobs.kind.';
COMMENT ON COLUMN job_queue.priority IS 'Copy of jobs.priority.';
COMMENT ON COLUMN job_queue.seq IS 'Copy of jobs.seq: the oldest of a priority goes first.';
COMMENT ON COLUMN job_queue.state IS 'queued: may be claimed from not_before on. leased: a worker holds it. paused: waits for a resume.';
COMMENT ON COLUMN job_queue.not_before IS 'Earliest claim; only while queued.';
COMMENT ON COLUMN job_queue.lease_token IS 'Fence of the claim; every write of the holder carries it. Only while leased.';
COMMENT ON COLUMN job_queue.lease_until IS 'The claim is void from then on. Only while leased.';
COMMENT ON COLUMN job_queue.worker_id IS 'The holder. Only while leased.';
COMMENT ON COLUMN job_queue.directive IS 'What the holder is told at its next heartbeat. run: go on. pause: save and give the job back. cancel: stop. Only while leased.';
COMMENT ON COLUMN job_queue.heartbeat_at IS 'Last sign of life of the holder. Only while leased.';
COMMENT ON COLUMN job_queue.progress IS 'Newest progress (domain Progress).';

CREATE TABLE job_attempts (
    job_id      uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    attempt     integer NOT NULL CHECK (attempt >= 1),
    lease_token bigint NOT NULL UNIQUE,
    worker_id   uuid NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT now(),
    ended_at    timestamptz,
    ended       text CHECK (ended IN ('succeeded', 'failed', 'released', 'expired')),
    error       text,
    PRIMARY KEY (job_id, attempt),
    CONSTRAINT job_attempts_ended_once CHECK ((ended_at IS NOT NULL) = (ended IS NOT NULL))
);
CREATE INDEX job_attempts_by_worker ON job_attempts (worker_id);
COMMENT ON TABLE job_attempts IS 'Every claim of every job, kept.';
COMMENT ON COLUMN job_attempts.job_id IS 'The job.';
COMMENT ON COLUMN job_attempts.attempt IS 'Counted from 1.';
COMMENT ON COLUMN job_attempts.lease_token IS 'Fence of the claim.';
COMMENT ON COLUMN job_attempts.worker_id IS 'The holder.';
COMMENT ON COLUMN job_attempts.started_at IS 'When the job was claimed.';
COMMENT ON COLUMN job_attempts.ended_at IS 'When the claim ended; null while it holds.';
COMMENT ON COLUMN job_attempts.ended IS 'succeeded: with an outcome. failed: with an error. released: given back unfinished. expired: the holder fell silent. Null while it holds.';
COMMENT ON COLUMN job_attempts.error IS 'Why it failed, was given back or was lost.';

CREATE FUNCTION job_status(final_status text, state text, directive text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN final_status IS NOT NULL THEN final_status
        WHEN state = 'queued' THEN 'QUEUED'
        WHEN state = 'paused' THEN 'PAUSED'
        WHEN directive = 'pause' THEN 'PAUSING'
        WHEN directive = 'cancel' THEN 'CANCELLING'
        ELSE 'RUNNING'
    END;
COMMENT ON FUNCTION job_status IS 'Public status of a job from jobs.final_status, job_queue.state and job_queue.directive.';

-- What jobs make -------------------------------------------------------------------------------------------------

CREATE TABLE artifacts (
    id              uuid PRIMARY KEY,
    seq             bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    kind            text NOT NULL CHECK (kind IN ('token_set', 'checkpoint', 'training_state', 'scores')),
    location        text NOT NULL,
    manifest_sha256 bytea CHECK (octet_length(manifest_sha256) = 32),
    size_bytes      bigint NOT NULL CHECK (size_bytes >= 0),
    file_count      integer NOT NULL CHECK (file_count >= 0),
    job_id          uuid REFERENCES jobs ON DELETE CASCADE,
    run_id          uuid REFERENCES runs ON DELETE CASCADE,
    lease_token     bigint,
    step            bigint CHECK (step >= 0),
    metadata        jsonb NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    deleted_at      timestamptz,
    CONSTRAINT artifacts_made_or_registered CHECK (
        (job_id IS NULL) = (manifest_sha256 IS NULL) AND (job_id IS NULL) = (lease_token IS NULL))
);
CREATE INDEX artifacts_by_job ON artifacts (job_id, kind, step DESC) WHERE job_id IS NOT NULL;
CREATE INDEX artifacts_by_run ON artifacts (run_id, seq DESC) WHERE run_id IS NOT NULL;
CREATE INDEX artifacts_by_kind ON artifacts (kind, seq DESC);
COMMENT ON TABLE artifacts IS 'Published sets of files. The row is the commit point: files without one are garbage.';
COMMENT ON COLUMN artifacts.id IS 'Names the artifact.';
COMMENT ON COLUMN artifacts.seq IS 'Order of publication; lists are paged by it.';
COMMENT ON COLUMN artifacts.kind IS 'token_set: training and validation tokens with their tokenizer. checkpoint: a Hugging Face model folder. training_state: what an exact resume needs. scores: detailed results of an evaluation.';
COMMENT ON COLUMN artifacts.location IS 'Key prefix in the object store, or the URI of a registered folder.';
COMMENT ON COLUMN artifacts.manifest_sha256 IS 'Digest of manifest.json, which lists the files with theirs; null for a registered folder.';
COMMENT ON COLUMN artifacts.size_bytes IS 'Size of all files in bytes.';
COMMENT ON COLUMN artifacts.file_count IS 'Number of files.';
COMMENT ON COLUMN artifacts.job_id IS 'The job that made it; null for a registered folder.';
COMMENT ON COLUMN artifacts.run_id IS 'That job''s run.';
COMMENT ON COLUMN artifacts.lease_token IS 'Fence of the claim that published it; null for a registered folder.';
COMMENT ON COLUMN artifacts.step IS 'Optimizer steps behind it, where there are any.';
COMMENT ON COLUMN artifacts.metadata IS 'What it is: layers, parameters, tokens, origin.';
COMMENT ON COLUMN artifacts.created_at IS 'When its row was written.';
COMMENT ON COLUMN artifacts.deleted_at IS 'When it was deleted: its files are gone or about to go.';

CREATE TABLE metric_points (
    job_id      uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    name        text NOT NULL,
    step        bigint NOT NULL CHECK (step >= 0),
    tokens_seen bigint NOT NULL CHECK (tokens_seen >= 0),
    value       double precision NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_id, name, step)
);
COMMENT ON TABLE metric_points IS 'Points of training curves. A resumed job overwrites the points of the steps it does again.';
COMMENT ON COLUMN metric_points.job_id IS 'The job.';
COMMENT ON COLUMN metric_points.name IS 'train_loss, validation_loss (nats), learning_rate, gradient_norm, tokens_per_second.';
COMMENT ON COLUMN metric_points.step IS 'Optimizer step.';
COMMENT ON COLUMN metric_points.tokens_seen IS 'Tokens trained on by then.';
COMMENT ON COLUMN metric_points.value IS 'The value.';
COMMENT ON COLUMN metric_points.created_at IS 'When it was written.';

CREATE TABLE request_ids (
    request_id     uuid PRIMARY KEY,
    kind           text NOT NULL CHECK (kind IN ('run', 'job', 'artifact')),
    resource_id    uuid NOT NULL,
    request_sha256 bytea NOT NULL CHECK (octet_length(request_sha256) = 32),
    created_at     timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE request_ids IS 'Create calls already carried out: the same request_id makes nothing twice.';
COMMENT ON COLUMN request_ids.request_id IS 'Chosen by the client.';
COMMENT ON COLUMN request_ids.kind IS 'What was created: run, job or artifact.';
COMMENT ON COLUMN request_ids.resource_id IS 'Its id.';
COMMENT ON COLUMN request_ids.request_sha256 IS 'Digest of the request: the same id with another body is refused.';
COMMENT ON COLUMN request_ids.created_at IS 'When.';
