"""Errors of the user's model and loss, and of PyTorch in them, in one line with a remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hessdist.errors import HessdistError, WorkloadError
from hessdist.unforeseen import memory_shortage

# Remedies for operations that PyTorch differentiates only once.
_REPLACEMENTS = {
    "ctc_loss": "write the recursion of CTC with logsumexp, or analyse the network below it",
    "segment_reduce": "use index_add or scatter_reduce",
    "flash_attention": "use torch.nn.functional.scaled_dot_product_attention",
    "efficient_attention": "use torch.nn.functional.scaled_dot_product_attention",
    "cudnn_rnn": "use torch.nn.LSTM, GRU or RNN",
    "pdist": "use torch.cdist",
}

# Other causes, by patterns of PyTorch's messages, each with its remedy.
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
        "pass it without torch.compile",
    ),
    (
        re.compile(r"use_reentrant=True|[Cc]heckpointing is not compatible with \.grad"),
        "the model uses reentrant activation checkpointing, which has no second derivative",
        "call torch.utils.checkpoint.checkpoint with use_reentrant=False",
    ),
    (
        re.compile(r"strides should be multiple of 16|_grouped_mm|Expected mat_a to be Float32"),
        "the model multiplies its experts by a fused kernel that does not support these sizes, or "
        "float64",
        "choose the plain one (in transformers: experts_implementation='eager')",
    ),
    (
        re.compile(r"'Tensor' object is not callable"),
        "the loss was called with (outputs, targets), but it calls one of them like a loss of "
        "(model, batch)",
        "name its first parameter `model`",
    ),
)


@contextmanager
def evaluating(what: str) -> Iterator[None]:
    """Convert errors of PyTorch and of the user's code in an evaluation to one line.

    Args:
        what: The name of the evaluated data ("batch 3").

    Yields:
        Nothing.

    Raises:
        WorkloadError: The model or the loss cannot be evaluated or differentiated.
        HessdistError: An error of hessdist itself, without changes.
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
    """Explain an error of PyTorch or of the user's code.

    Args:
        error: The error.

    Returns:
        The cause and the remedy.
    """
    if (shortage := memory_shortage(error)) is not None:
        return shortage.what, shortage.remedy
    text = str(error)
    missing = re.search(r"derivative for '?(?:aten::)?(\w+?)'? is not implemented", text)
    if missing:
        operation = missing[1].removesuffix("_backward").lstrip("_")
        replacement = next((r for name, r in _REPLACEMENTS.items() if name in operation), None)
        return (
            f"PyTorch has no second derivative of {operation}",
            replacement or "replace this operation of the model or the loss by others",
        )
    for pattern, cause, remedy in _CAUSES:
        if pattern.search(text):
            return cause, remedy
    return (
        f"the model and the loss cannot be evaluated ({type(error).__name__}: {first_line(error)})",
        "check that the model, the loss and the data set fit together",
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, up to 200 characters."""
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
