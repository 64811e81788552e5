"""The job file that results of a monitor carry, as those of `hessdist spectrum` do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomlkit
from torch import Tensor, nn

from hessdist.parallel.ranks import fingerprint_of

_HEADER = (
    "Written by hessdist.callbacks. Model, loss and data were objects of the training program,\n"
    "so that their names are here in place of factories. No checkpoints were written."
)


def job_text(
    model: nn.Module,
    loss: object,
    dataset: Any,
    path: str,
    *,
    l2: float,
    spectrum: dict[str, Any],
    compute: dict[str, Any],
) -> str:
    """Describe what is solved as a job file.

    Args:
        model: The model.
        loss: The loss.
        dataset: The data set.
        path: The path of the result.
        l2: The factor of the penalty.
        spectrum: The keys of the section `[spectrum]`.
        compute: The keys of the section `[compute]`.

    Returns:
        The TOML text, which `parse_job` takes. The same arguments give the same text.
    """
    shapes = [(name, tuple(value.shape)) for name, value in model.named_parameters()]
    count = sum(value.numel() for value in model.parameters())
    model_is = {"num_parameters": count, "shapes": fingerprint_of(shapes)[:12]}
    document = tomlkit.document()
    for line in _HEADER.split("\n"):
        document.add(tomlkit.comment(line))
    document.add("name", tomlkit.item(Path(path).stem))
    sections: dict[str, dict[str, Any]] = {
        "model": {"factory": _name_of(model), "arguments": model_is},
        "loss": {"factory": _name_of(loss), "arguments": _settings_of(loss), "l2": l2},
        "data": {"dataset": _name_of(dataset), "samples": len(dataset), "subset": "first"},
        "checkpoints": {"directory": f"{path}.none"},
        "spectrum": spectrum,
        "compute": compute,
        "output": {"path": path},
    }
    for name, values in sections.items():
        table = tomlkit.table()
        for key, value in values.items():
            table.add(key, value)
        document.add(name, table)
    return tomlkit.dumps(document)


def _name_of(value: Any) -> str:
    """Return the module and the name of a function, or of the class of another object."""
    named = value if _has_name(value) else type(value)
    return f"{named.__module__}:{named.__qualname__}"


def _settings_of(loss: object) -> dict[str, Any]:
    """Return the plain public attributes of a loss, and digests of its tensors, such as weights."""
    own = {} if _has_name(loss) else dict(getattr(loss, "__dict__", {}))
    tensors = loss.state_dict() if isinstance(loss, nn.Module) else own
    plain = {
        name: value
        for name, value in own.items()
        if isinstance(value, bool | int | float | str) and name != "training"
    }
    digests = {
        name: fingerprint_of(value.detach().cpu().numpy())[:12]
        for name, value in tensors.items()
        if isinstance(value, Tensor)
    }
    return {name: value for name, value in (plain | digests).items() if name[0] != "_"}


def _has_name(value: object) -> bool:
    """Return whether a value is a function or a class."""
    return hasattr(value, "__qualname__")
