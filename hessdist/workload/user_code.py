"""What the user's model and loss raise, and what PyTorch raises on their behalf, as one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hessdist.errors import HessdistError, WorkloadError

_LONGEST = 200  # characters of a message that is passed on

_NO_DERIVATIVE = re.compile(r"derivative for '?(?:aten::)?(\w+?)'? is not implemented")

# What serves instead of operations that PyTorch differentiates once.
_INSTEAD = {
    "ctc_loss": "write the recursion of CTC with logsumexp, or analyse the network below it",
    "segment_reduce": "use index_add or scatter_reduce",
    "flash_attention": "use torch.nn.functional.scaled_dot_product_attention",
    "efficient_attention": "use torch.nn.functional.scaled_dot_product_attention",
    "cudnn_rnn": "use torch.nn.LSTM, GRU or RNN as they come",
    "pdist": "use torch.cdist",
}

# Other causes that PyTorch's messages tell, with what and the remedy.
_CAUSES = (
    (
        re.compile(r"once_differentiable"),
        "a function of the model or the loss is marked once_differentiable, so it has no second "
        "derivative",
        "write its backward pass with operations that PyTorch can differentiate",
    ),
    (
        re.compile(r"support double backward|donated buffer"),
        "a part of the model or the loss was compiled, and compiled code has no second derivative",
        "pass it as it was before torch.compile",
    ),
    (
        re.compile(r"use_reentrant=True|[Cc]heckpointing is not compatible with \.grad"),
        "the model uses reentrant activation checkpointing, which has no second derivative",
        "call torch.utils.checkpoint.checkpoint with use_reentrant=False",
    ),
    (
        re.compile(r"strides should be multiple of 16|_grouped_mm"),
        "the model multiplies its experts by a fused kernel that does not take these sizes",
        "choose the plain one (in transformers: experts_implementation='eager')",
    ),
    (
        re.compile(r"'Tensor' object is not callable"),
        "the loss was called with (outputs, targets) and calls one of them, as a loss of (model, "
        "batch) does",
        "name its first parameter `model`",
    ),
)


@contextmanager
def evaluating(what: str) -> Iterator[None]:
    """Turn what PyTorch and the user's code raise when a model is evaluated into one line.

    Args:
        what: What is evaluated ("batch 3").

    Yields:
        Nothing.

    Raises:
        WorkloadError: The model or the loss cannot be evaluated or differentiated there.
        HessdistError: Passed on as it is.
    """
    try:
        yield
    except HessdistError:
        raise
    except torch.OutOfMemoryError as error:
        raise WorkloadError(
            f"{what}: the device is out of memory ({first_line(error)})",
            "lower compute.batch_size, compute.cache_gib or compute.data_gib",
        ) from error
    except Exception as error:
        cause, remedy = explained(error)
        raise WorkloadError(f"{what}: {cause}", remedy) from error


def explained(error: Exception) -> tuple[str, str]:
    """Say what an error of PyTorch's or of the user's code means.

    Args:
        error: The error.

    Returns:
        What it is, and the remedy.
    """
    text = str(error)
    missing = _NO_DERIVATIVE.search(text)
    if missing:
        operation = missing[1].removesuffix("_backward").lstrip("_")
        instead = next((text for name, text in _INSTEAD.items() if name in operation), None)
        return (
            f"PyTorch has no second derivative of {operation}",
            instead or "write that operation of the model or the loss by others that have one",
        )
    for pattern, cause, remedy in _CAUSES:
        if pattern.search(text):
            return cause, remedy
    return (
        f"the model and the loss cannot be evaluated ({type(error).__name__}: {first_line(error)})",
        "check that the model, the loss and the data set fit together",
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut where it is long."""
    return (str(error).strip().splitlines() or ["no message"])[0][:_LONGEST]
