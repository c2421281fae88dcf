-- More curves a training: what they are called, where the schema says so.

COMMENT ON COLUMN metric_points.name IS 'train_loss, validation_loss (nats), learning_rate, gradient_norm, tokens_per_second, model_flops_utilization (share of the device''s measured matrix product peak), memory_bytes (of the trainer''s process), data_epoch (passes over the training tokens).';
COMMENT ON COLUMN ops.training_curves.metric IS 'train_loss, validation_loss (nats), learning_rate, gradient_norm, tokens_per_second, model_flops_utilization (share of the device''s measured matrix product peak), memory_bytes (of the trainer''s process), data_epoch (passes over the training tokens).';
