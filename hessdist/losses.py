"""Losses that PyTorch does not have, for `extreme_eigenpairs` and the other functions.

The losses of torch.nn are taken as they are.
"""

from hessdist.workload.language import causal_lm, masked_lm

__all__ = ["causal_lm", "masked_lm"]
