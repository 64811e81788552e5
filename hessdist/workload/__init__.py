"""What is differentiated: models, data sets, losses, checkpoints and the training that writes them."""
