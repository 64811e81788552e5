"""The loss along directions: what it does away from θ."""
