"""Laws of random matrices as models of the Hessian."""
