"""What the Hessian says about a training run that goes wrong."""
