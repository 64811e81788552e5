"""Laws, bounds and iterates in closed form: random matrices, convex losses, quadratics.

With NumPy and SciPy only.
"""
