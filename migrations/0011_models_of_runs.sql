-- Stores the models of runs as rows and the notes as data, so that SQL readers need no JSON paths.

ALTER TABLE run_notes ADD COLUMN note jsonb;
COMMENT ON COLUMN run_notes.text IS 'The decision as English text.';
COMMENT ON COLUMN run_notes.note IS 'The decision as data, with the version of its format (domain Note); null if an older release wrote it.';

ALTER TABLE runs ADD COLUMN reference_layers integer,
                 ADD COLUMN matched boolean;
COMMENT ON COLUMN runs.reference_layers IS 'Number of layers of the reference; null while unknown.';
COMMENT ON COLUMN runs.matched IS 'Whether the target matches the reference; null before the end, and if the reference was not measured.';

CREATE TABLE run_models (
    run_id                 uuid NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    position               integer NOT NULL CHECK (position >= 0),
    role                   text NOT NULL CHECK (role IN ('reference', 'candidate', 'control', 'arm')),
    round                  integer,
    name                   text NOT NULL,
    stage                  text NOT NULL CHECK (stage IN ('slicing', 'training', 'evaluating', 'done', 'given_up')),
    layers                 integer,
    parameters             bigint,
    checkpoint             text,
    steps                  bigint,
    tokens_seen            bigint,
    epochs                 double precision,
    training_seconds       double precision,
    validation_loss        double precision,
    validation_loss_stderr double precision,
    validation_sequences   bigint,
    difference             double precision,
    difference_stderr      double precision,
    decision               text CHECK (decision IN ('grow', 'match', 'settle')),
    problem                text,
    PRIMARY KEY (run_id, position)
);
COMMENT ON TABLE run_models IS 'The models of every run, one row each. The run driver writes them together with the run''s state.';
COMMENT ON COLUMN run_models.run_id IS 'Id of the run.';
COMMENT ON COLUMN run_models.position IS 'Order in which the models were started, from 0.';
COMMENT ON COLUMN run_models.role IS 'reference, candidate (of one round), control or arm.';
COMMENT ON COLUMN run_models.round IS 'Round of a candidate, from 1; null for other roles.';
COMMENT ON COLUMN run_models.name IS 'Human-readable name.';
COMMENT ON COLUMN run_models.stage IS 'slicing, training, evaluating, done or given_up.';
COMMENT ON COLUMN run_models.layers IS 'Number of layers; null while unknown.';
COMMENT ON COLUMN run_models.parameters IS 'Number of parameters; tied ones count once. Null while unknown.';
COMMENT ON COLUMN run_models.checkpoint IS 'Location of the checkpoint: artifact://ID, or the URI of a given reference; null while there is none.';
COMMENT ON COLUMN run_models.steps IS 'Optimizer steps of its training; null before, and for a given reference.';
COMMENT ON COLUMN run_models.tokens_seen IS 'Tokens of its training; null before, and for a given reference.';
COMMENT ON COLUMN run_models.epochs IS 'Passes over the training tokens; null before, and for a given reference.';
COMMENT ON COLUMN run_models.training_seconds IS 'Duration of its training in seconds; null before, and for a given reference.';
COMMENT ON COLUMN run_models.validation_loss IS 'Validation loss in nats; null before it is measured.';
COMMENT ON COLUMN run_models.validation_loss_stderr IS 'Standard error of the validation loss.';
COMMENT ON COLUMN run_models.validation_sequences IS 'Number of sequences on which the loss was measured.';
COMMENT ON COLUMN run_models.difference IS 'Mean over sequences of its loss minus the reference''s loss, in nats; null for the reference.';
COMMENT ON COLUMN run_models.difference_stderr IS 'Standard error of the difference.';
COMMENT ON COLUMN run_models.decision IS 'Decision based on a candidate''s loss: grow (try a larger one), match (it matches the reference) or settle (growth ended without a match).';
COMMENT ON COLUMN run_models.problem IS 'Why the run continued without this model or without its benchmarks.';

CREATE TABLE schema_views (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    digest    text NOT NULL
);
COMMENT ON TABLE schema_views IS 'The version of the views in the schema ops.';
COMMENT ON COLUMN schema_views.singleton IS 'Always true, so that there is only one row.';
COMMENT ON COLUMN schema_views.digest IS 'SHA-256 of the text of the views.';

-- Fill the new columns and the new table from the states of existing runs.
UPDATE runs
SET reference_layers = (state ->> 'reference_layers')::integer,
    matched = (state #>> '{state,matched}')::boolean;

INSERT INTO run_models (run_id, position, role, round, name, stage, layers, parameters, checkpoint, steps, tokens_seen, epochs,
                        training_seconds, validation_loss, validation_loss_stderr, validation_sequences, difference,
                        difference_stderr, problem)
SELECT r.id,
       (e.place - 1)::integer,
       e.model #>> '{model,model}',
       (e.model #>> '{model,round}')::integer,
       CASE e.model #>> '{model,model}'
           WHEN 'reference' THEN 'reference'
           WHEN 'candidate' THEN
               CASE WHEN r.recipe = 'full-data' THEN format('round %s: ', e.model #>> '{model,round}') ELSE '' END
               || format('%s layers inherited', e.model #>> '{model,layers}')
           ELSE coalesce(r.spec #>> ARRAY[(e.model #>> '{model,model}') || 's', e.model #>> '{model,index}', 'name'],
                         format('%s %s', e.model #>> '{model,model}', e.model #>> '{model,index}'))
       END,
       CASE
           WHEN e.model ->> 'given_up' IS NOT NULL THEN 'given_up'
           WHEN e.model #>> '{validation,value}' IS NOT NULL OR e.model ->> 'scores' IS NOT NULL THEN 'done'
           WHEN e.model ->> 'checkpoint' IS NOT NULL THEN 'evaluating'
           WHEN e.model ->> 'initial' IS NOT NULL THEN 'training'
           ELSE 'slicing'
       END,
       (e.model ->> 'layers')::integer,
       (e.model ->> 'parameters')::bigint,
       coalesce('artifact://' || (e.model #>> '{checkpoint,artifact}'), e.model #>> '{checkpoint,uri}'),
       (e.model ->> 'steps')::bigint,
       (e.model ->> 'tokens_seen')::bigint,
       (e.model ->> 'epochs')::float8,
       (e.model ->> 'wall_s')::float8,
       (e.model #>> '{validation,value}')::float8,
       (e.model #>> '{validation,stderr}')::float8,
       (e.model #>> '{validation,n}')::bigint,
       (e.model #>> '{difference,value}')::float8,
       (e.model #>> '{difference,stderr}')::float8,
       coalesce(e.model ->> 'given_up', e.model ->> 'benchmarks_problem')
FROM runs r
CROSS JOIN LATERAL jsonb_array_elements(r.state -> 'models') WITH ORDINALITY AS e (model, place);

DO $$ BEGIN PERFORM grant_roles(); END $$;
