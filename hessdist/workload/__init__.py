"""Models, data sets, losses, checkpoints and training: everything that is differentiated."""
