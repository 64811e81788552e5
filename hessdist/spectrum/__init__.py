"""The shell matrix and its extreme eigenpairs. PETSc and SLEPc are used here and nowhere else."""
