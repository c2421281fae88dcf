CREATE OR REPLACE VIEW ops.training_curves AS
SELECT j.run_id,
       r.name AS run_name,
       m.job_id,
       coalesce(j.model_name, j.label) AS model_name,
       m.name AS metric,
       m.step,
       m.tokens_seen,
       m.value,
       m.created_at
FROM metric_points m
JOIN jobs j ON j.id = m.job_id
LEFT JOIN runs r ON r.id = j.run_id;

COMMENT ON VIEW ops.training_curves IS 'Points of training curves.';
COMMENT ON COLUMN ops.training_curves.run_id IS 'The run.';
COMMENT ON COLUMN ops.training_curves.run_name IS 'Its name.';
COMMENT ON COLUMN ops.training_curves.job_id IS 'The training job.';
COMMENT ON COLUMN ops.training_curves.model_name IS 'The model, or the job''s label outside a run.';
COMMENT ON COLUMN ops.training_curves.metric IS 'train_loss, validation_loss (nats), learning_rate, gradient_norm, tokens_per_second, model_flops_utilization (share of the device''s measured matrix product peak), memory_bytes (of the trainer''s process), data_epoch (passes over the training tokens); of an evaluation TASK.METRIC, its score so far, by documents.';
COMMENT ON COLUMN ops.training_curves.step IS 'Optimizer step; of an evaluation, documents so far.';
COMMENT ON COLUMN ops.training_curves.tokens_seen IS 'Tokens trained on by then.';
COMMENT ON COLUMN ops.training_curves.value IS 'The value.';
COMMENT ON COLUMN ops.training_curves.created_at IS 'When it was written.';
