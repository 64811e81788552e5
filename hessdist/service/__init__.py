"""Many checkpoints: the sweep that takes each of them through the solver."""
