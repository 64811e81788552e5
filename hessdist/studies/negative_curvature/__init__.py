"""Negative curvature and step sizes: Alain, Le Roux and Manzagol (2018)."""
