"""The HDF5 schema, its writer and its reader, with h5py and NumPy only."""
