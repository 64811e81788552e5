"""Random-matrix laws of Hessians and their fits to measured spectra, with NumPy and SciPy only."""
