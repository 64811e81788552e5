"""Random-matrix laws and what they say of the loss. NumPy and SciPy alone."""
