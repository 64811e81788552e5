"""Loss, gradient and the products Hv, Gv, Fv, Sv on one rank's samples, with PyTorch only."""
