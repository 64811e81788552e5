"""The loss along directions, away from the present parameters."""
