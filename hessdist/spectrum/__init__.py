"""The shell matrix and its extreme eigenpairs. PETSc and SLEPc live here and nowhere else."""
