"""Optimisers that use curvature."""
