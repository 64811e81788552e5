"""Whole spectra of small and large networks: Sagun, Bottou and LeCun (2016)."""
