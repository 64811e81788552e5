"""What is differentiated: models, data sets, losses, checkpoints, training."""
