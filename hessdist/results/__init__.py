"""The HDF5 schema, its writer and its reader: h5py and NumPy alone."""
