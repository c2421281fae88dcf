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

COMMENT ON VIEW ops.models IS 'The models of every run: what they are, their losses, and what followed from them.';
COMMENT ON COLUMN ops.models.run_id IS 'The run.';
COMMENT ON COLUMN ops.models.run_name IS 'Its name.';
COMMENT ON COLUMN ops.models.position IS 'Order in which they were begun, from 0.';
COMMENT ON COLUMN ops.models.role IS 'reference, candidate (of one round), control or arm.';
COMMENT ON COLUMN ops.models.round IS 'The round of a candidate, from 1; null for the others.';
COMMENT ON COLUMN ops.models.model_name IS 'Its name for people.';
COMMENT ON COLUMN ops.models.stage IS 'slicing, training, evaluating, done or given_up.';
COMMENT ON COLUMN ops.models.layers IS 'Its layers; null while unknown.';
COMMENT ON COLUMN ops.models.parameters IS 'Its parameters, tied ones counted once; null while unknown.';
COMMENT ON COLUMN ops.models.checkpoint IS 'Where it is: artifact://ID, or the URI of a given reference; null before.';
COMMENT ON COLUMN ops.models.steps IS 'Optimizer steps of its training; null before, and for a given reference.';
COMMENT ON COLUMN ops.models.tokens_seen IS 'Tokens of its training, likewise.';
COMMENT ON COLUMN ops.models.epochs IS 'Passes over the training tokens, likewise.';
COMMENT ON COLUMN ops.models.training_seconds IS 'Time of its training in seconds, likewise.';
COMMENT ON COLUMN ops.models.validation_loss IS 'Its validation loss in nats; null before it is measured.';
COMMENT ON COLUMN ops.models.validation_loss_stderr IS 'Standard error of that loss.';
COMMENT ON COLUMN ops.models.validation_sequences IS 'Sequences that it was measured on.';
COMMENT ON COLUMN ops.models.difference IS 'Its loss less the reference''s in nats, sequence by sequence; null for the reference.';
COMMENT ON COLUMN ops.models.difference_stderr IS 'Standard error of that difference.';
COMMENT ON COLUMN ops.models.decision IS 'What followed from a candidate''s loss: grow (a larger one is next), match (it matches the reference), settle (growth ended without a match).';
COMMENT ON COLUMN ops.models.problem IS 'Why the run went on without it, or without its benchmarks.';
