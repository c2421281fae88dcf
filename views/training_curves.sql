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
COMMENT ON COLUMN ops.training_curves.run_id IS 'Id of the run.';
COMMENT ON COLUMN ops.training_curves.run_name IS 'Name of the run.';
COMMENT ON COLUMN ops.training_curves.job_id IS 'Id of the train or evaluate job.';
COMMENT ON COLUMN ops.training_curves.model_name IS 'Name of the model; outside of a run, the label of the job.';
COMMENT ON COLUMN ops.training_curves.metric IS 'train_loss, validation_loss (nats), learning_rate, gradient_norm, tokens_per_second, model_flops_utilization (fraction of the device''s measured peak for matrix products), memory_bytes (of the trainer''s process) or data_epoch (passes over the training tokens); for an evaluation TASK.METRIC, the score over the documents so far.';
COMMENT ON COLUMN ops.training_curves.step IS 'Optimizer step; for an evaluation, the number of documents so far.';
COMMENT ON COLUMN ops.training_curves.tokens_seen IS 'Number of tokens trained on so far.';
COMMENT ON COLUMN ops.training_curves.value IS 'The value.';
COMMENT ON COLUMN ops.training_curves.created_at IS 'When it was written.';
