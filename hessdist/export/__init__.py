"""Results in the formats of other programs: tables, TensorBoard, W&B, MLflow."""
