CREATE OR REPLACE VIEW ops.models AS
SELECT m.run_id,
       r.name AS run_name,
       m.position,
       m.role,
       m.round,
       m.name AS model_name,
       m.stage,
       m.layers,
       m.parameters,
       m.checkpoint,
       m.steps,
       m.tokens_seen,
       m.epochs,
       m.training_seconds,
       m.validation_loss,
       m.validation_loss_stderr,
       m.validation_sequences,
       m.difference,
       m.difference_stderr,
       m.decision,
       m.problem
FROM run_models m
JOIN runs r ON r.id = m.run_id;

COMMENT ON VIEW ops.models IS 'The models of every run, with their losses and the decisions based on them.';
COMMENT ON COLUMN ops.models.run_id IS 'Id of the run.';
COMMENT ON COLUMN ops.models.run_name IS 'Name of the run.';
COMMENT ON COLUMN ops.models.position IS 'Order in which the models were started, from 0.';
COMMENT ON COLUMN ops.models.role IS 'reference, candidate (of one round), control or arm.';
COMMENT ON COLUMN ops.models.round IS 'Round of a candidate, from 1; null for other roles.';
COMMENT ON COLUMN ops.models.model_name IS 'Human-readable name.';
COMMENT ON COLUMN ops.models.stage IS 'slicing, training, evaluating, done or given_up.';
COMMENT ON COLUMN ops.models.layers IS 'Number of layers; null while unknown.';
COMMENT ON COLUMN ops.models.parameters IS 'Number of parameters; tied ones count once. Null while unknown.';
COMMENT ON COLUMN ops.models.checkpoint IS 'Location of the checkpoint: artifact://ID, or the URI of a given reference; null while there is none.';
COMMENT ON COLUMN ops.models.steps IS 'Optimizer steps of its training; null before, and for a given reference.';
COMMENT ON COLUMN ops.models.tokens_seen IS 'Tokens of its training; null before, and for a given reference.';
COMMENT ON COLUMN ops.models.epochs IS 'Passes over the training tokens; null before, and for a given reference.';
COMMENT ON COLUMN ops.models.training_seconds IS 'Duration of its training in seconds; null before, and for a given reference.';
COMMENT ON COLUMN ops.models.validation_loss IS 'Validation loss in nats; null before it is measured.';
COMMENT ON COLUMN ops.models.validation_loss_stderr IS 'Standard error of the validation loss.';
COMMENT ON COLUMN ops.models.validation_sequences IS 'Number of sequences on which the loss was measured.';
COMMENT ON COLUMN ops.models.difference IS 'Mean over sequences of its loss minus the reference''s loss, in nats; null for the reference.';
COMMENT ON COLUMN ops.models.difference_stderr IS 'Standard error of the difference.';
COMMENT ON COLUMN ops.models.decision IS 'Decision based on a candidate''s loss: grow (try a larger one), match (it matches the reference) or settle (growth ended without a match).';
COMMENT ON COLUMN ops.models.problem IS 'Why the run continued without this model or without its benchmarks.';
