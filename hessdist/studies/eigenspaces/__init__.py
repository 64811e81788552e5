"""Decompositions of the Hessian, and optimisers that use its eigenspaces."""
