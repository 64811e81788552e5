"""Results as a sweep would have written them, of any size, without a solve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from hessdist.results.files import replacing
from hessdist.results.schema import TABLES
from hessdist.results.units import Measurements, Variable, write_studies
from hessdist.results.writer import CheckpointFile, RunDescription, part_path, parts_of, write_index
from hessdist.spectrum.densities import SpectralDensity

JOB = """
name = {name}
[model]
factory = "lenet"
[data]
dataset = "mnist"
[checkpoints]
directory = "checkpoints"
[output]
path = "run.h5"
"""


def write_run(
    path: Path,
    *,
    steps: int,
    largest: int = 5,
    smallest: int = 3,
    size: int = 7,
    name: str = "written",
    eigenvectors: bool = True,
    seed: int = 0,
    change: Callable[[dict[str, np.ndarray]], None] = lambda tables: None,
    studies: Mapping[str, Measurements] | None = None,
) -> Path:
    """Write a run of `steps` checkpoints, ten minibatches apart, or of none.

    Args:
        path: The run's file.
        steps: Checkpoints.
        largest: k.
        smallest: m.
        size: d.
        name: In the job.
        eigenvectors: Whether they are written.
        seed: Of the numbers.
        change: Given the tables of all steps to change them.
        studies: Sections by name.

    Returns:
        The path.
    """
    rng = np.random.default_rng(seed)
    sizes = {"largest": largest, "smallest": smallest}
    tables: dict[str, np.ndarray] = {
        "loss": 2 * np.exp(-np.arange(steps) / 40) + 0.01,
        "gradient_norm": rng.random(steps),
        "products": rng.integers(60, 90, steps),
        "seconds": rng.random(steps) + 3,
        "stability_bound": np.full(steps, np.nan),
    }
    for end, sign in (("largest", 1), ("smallest", -1)):
        values = sign * 20 * np.exp(-np.arange(sizes[end]) / 9) * (1 + 0.1 * rng.random((steps, 1)))
        tables[f"eigenvalues_{end}"] = values
        tables[f"residuals_{end}"] = 1e-3 * rng.random(values.shape)
        tables[f"converged_{end}"] = np.ones(values.shape, bool)
    change(tables)
    description = RunDescription(
        job=JOB.format(name=_quoted(name)), fingerprint="0123456789ab", num_parameters=size,
        num_samples=100, ranks=2, versions={"torch": "2.13"}, parameter_names=("layer.weight",),
        parameter_shapes=((size,),), parameter_offsets=(0, size),
    )  # fmt: skip
    for row in range(steps):
        with replacing(part_path(path, 10 * row, description.fingerprint), sealed=True) as opened:
            file = CheckpointFile(opened, description, 10 * row, sizes)
            for field in TABLES:
                file.put(field.name, tables[field.name][row])
            file.put("gradient", rng.standard_normal(size))
            for end in ("largest", "smallest") if eigenvectors else ():
                for number in range(sizes[end]):
                    vector = rng.standard_normal(size).astype(np.float32)
                    file.put_slice(
                        f"eigenvectors_{end}", 0, vector / np.linalg.norm(vector), number
                    )
            file.finish({"checkpoint_digest": f"{row:064x}"})
    write_index(path, parts_of(path, description.fingerprint), without=description)
    if studies:
        with h5py.File(path, "a") as file:
            write_studies(file, studies)
    return path


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# -- sections of studies ---------------------------------------------------------------------


def spectrum(size: int, seed: int = 0) -> np.ndarray:
    """Eigenvalues as a Hessian's: two outliers, a bulk of both signs, half of all about zero.

    Args:
        size: d, 6 or more.
        seed: Of the numbers.

    Returns:
        (d,) ascending.
    """
    rng = np.random.default_rng(seed)
    zeros, bulk = size // 2, size - size // 2 - 2
    sizes = np.linspace(0.1, 0.02, bulk) * (1 + 0.1 * rng.random(bulk))
    signs = np.where(np.arange(bulk) % 3, 1, -1)
    return np.sort([3.0, 2.0, *signs * sizes, *1e-17 * rng.standard_normal(zeros)])


def _named(*names: str) -> np.ndarray:
    return np.array(names, dtype=object)


def _section(**variables: tuple[str, np.ndarray | Sequence[float]]) -> Measurements:
    """Dimensions as words, and values."""
    return Measurements({
        name: Variable(tuple(dimensions.split()), np.asarray(values), name)
        for name, (dimensions, values) in variables.items()
    })


def exact_section(steps: Sequence[int] = (0, 10), size: int = 24) -> Measurements:
    """Two operators; the picture is the diagonal matrix of the eigenvalues."""
    shape = (len(steps), 2)
    values = np.array([[spectrum(size, 2 * s + o) for o in range(2)] for s in range(len(steps))])
    return _section(
        step=("step", np.array(steps)),
        operator=("operator", _named("hessian", "gauss_newton")),
        eigenvalues=("step operator index", values),
        asymmetry=("step operator", np.full(shape, 3e-16)),
        seconds_products=("step operator", np.full(shape, 0.25)),
        seconds_eigenvalues=("step operator", np.full(shape, 0.5)),
        picture=("step operator row column", values[..., None] * np.eye(size)),
    )


def density_section(
    steps: Sequence[int] = (0, 10),
    blocks: Sequence[str] = ("all", "fc1"),
    size: int = 24,
    interval: tuple[float, float] | None = (1.5, 2.5),
) -> Measurements:
    """What three probes see of `exact_section`'s matrices with as many products as parameters.

    Blocks after the first have half the parameters.
    """
    shape = (len(steps), 2, len(blocks))
    rng = np.random.default_rng(1)
    sizes, nodes = np.empty(shape, int), np.full((*shape, 3, size), np.nan)
    weights = np.zeros_like(nodes)
    seen = np.empty(shape, dtype=object)
    for place in np.ndindex(shape):
        step, operator, block = place
        d = sizes[place] = size if block == 0 else size // 2
        vectors = rng.standard_normal((3, d))
        nodes[place][:, :d] = spectrum(d, 2 * step + operator)
        weights[place][:, :d] = vectors**2 / (vectors**2).sum(axis=1, keepdims=True)
        seen[place] = SpectralDensity(d, nodes[place], weights[place])
    variables = {
        "step": ("step", np.array(steps)),
        "operator": ("operator", _named("hessian", "gauss_newton")),
        "block": ("block", _named(*blocks)),
        "size": ("step operator block", sizes),
        "nodes": ("step operator block probe node", nodes),
        "weights": ("step operator block probe node", weights),
        "products": ("step operator block", 3 * sizes),
    }
    names = ["trace", "frobenius_norm", "effective_rank", "stable_rank", "participation_ratio"]
    estimates = {name: [getattr(one, name)() for one in seen.flat] for name in names}
    estimates["direct_trace"] = estimates["trace"]
    estimates["log_determinant"] = [one.log_determinant(4.0) for one in seen.flat]
    if interval is not None:
        variables["interval"] = ("step bound", np.tile(interval, (len(steps), 1)))
        estimates["count"] = [one.count(*interval) for one in seen.flat]
    for name, found in estimates.items():
        for suffix, of in (("", "value"), ("_error", "error")):
            values = np.array([getattr(one, of) for one in found]).reshape(shape)
            variables[name + suffix] = ("step operator block", values)
    return _section(**variables)


def architectures_section(sizes: Sequence[int] = (18, 40)) -> Measurements:
    """Three networks of each width, of which the last one has diverged, on four points."""
    count, most = len(sizes), max(sizes)
    values = np.full((count, 3, 2, most), np.nan)
    pictures = np.full((count, 2, most, most), np.nan)
    for row, size in enumerate(sizes):
        for network, stage in np.ndindex(2, 2):
            values[row, network, stage, :size] = spectrum(size, 9 * row + 2 * network + stage)
        pictures[row, :, :size, :size] = [np.diag(one[:size]) for one in values[row, 0]]
    reached = np.tile([True, False, False], (count, 1))
    losses = np.tile([[0.7, 0.01], [0.7, 0.02], [0.7, np.nan]], (count, 1, 1))
    return _section(
        architecture=("architecture", _named(*(f"{size}-{size}" for size in sizes))),
        parameters=("architecture", np.array(sizes)),
        stage=("stage", _named("start", "end")),
        eigenvalues=("architecture network stage index", values),
        picture=("architecture stage row column", pictures),
        loss=("architecture network stage", losses),
        gradient_norm=("architecture network stage", losses / 10),
        reached=("architecture network", reached),
        steps=("architecture network", np.full(reached.shape, 100)),
        inputs=("sample coordinate", np.array([[1, 1.2], [-1, -0.8], [0.7, 1], [-1.3, -1]])),
        label=("sample", np.arange(4) % 2),
    )


def initialisations_section(networks: int = 40) -> Measurements:
    """Every fourth network did not reach the norm, and the last one has diverged."""
    rng = np.random.default_rng(2)
    values = 0.2 + 0.01 * rng.standard_normal((networks, 1)) - 0.05 * np.arange(3)
    values[-1] = np.nan
    reached = np.arange(networks) % 4 > 0
    return _section(
        eigenvalues=("network top", values),
        eigenvalues_start=("network top", 1 + rng.random((networks, 3))),
        smallest=("network", -0.1 * rng.random(networks)),
        loss=("network", rng.random(networks)),
        gradient_norm=("network", 1e-4 * rng.random(networks)),
        reached=("network", reached & np.isfinite(values[:, 0])),
        steps=("network", np.full(networks, 100)),
    )


def spreads_section(argument: str = "spread") -> Measurements:
    """Three values; λ₁ is 1, 2, ... 5 times the value over five networks, and λ₂ half of it."""
    value = np.array([0.2, 0.4, 1.6])
    largest = value[:, None] * np.arange(1, 6)
    found = np.stack([largest, largest / 2, largest / 3], axis=-1)
    reached = np.ones((3, 5), bool)
    reached[2, 3:] = False
    section = _section(
        value=("value", value),
        eigenvalues=("value network top", found),
        eigenvalues_start=("value network top", 3 * found),
        smallest=("value network", -largest),
        loss=("value network", largest / 100),
        gradient_norm=("value network", largest / 1000),
        reached=("value network", reached),
        steps=("value network", np.full((3, 5), 100)),
    )
    axis = Variable(("value",), value, f"{argument} of the data set")
    return Measurements({**section.variables, "value": axis})


def interpolation_section() -> Measurements:
    """The first comparison is flat along its lines, the second has a barrier in the middle."""
    steps, fraction = np.arange(0, 50, 10), np.linspace(0, 1, 7)
    falling = np.exp(-steps / 20)[:, None]
    barrier = 4 * fraction * (1 - fraction)
    loss = np.stack([np.broadcast_to(falling, (5, 7)), falling * (1 + barrier)])
    names = _named("one start, gradient descent and SGD", "two starts, two shufflings of SGD")
    return _section(
        comparison=("comparison", names),
        step=("step", steps),
        fraction=("fraction", fraction),
        distance=("comparison step", np.stack([steps / 100, 3 + steps / 10])),
        loss=("comparison step fraction", loss),
    )


def sections() -> dict[str, Measurements]:
    """Every section about whole spectra and the singular Hessian."""
    return {
        "exact": exact_section(),
        "density": density_section(),
        "architectures": architectures_section(),
        "initialisations": initialisations_section(),
        "spreads": spreads_section(),
        "interpolation": interpolation_section(),
    }


def changed(section: Measurements, **values: np.ndarray) -> Measurements:
    """A section with other values."""
    old = section.variables
    new = {
        name: Variable(old[name].dimensions, array, old[name].long_name)
        for name, array in values.items()
    }
    return Measurements({**old, **new}, section.attributes)


def ruined(section: Measurements) -> Measurements:
    """Return the section with all its numbers NaN, as of networks that diverged."""
    numbers = {
        name: np.full_like(v.values, np.nan)
        for name, v in section.variables.items()
        if v.values.dtype.kind == "f" and len(v.dimensions) > 1
    }
    if "reached" in section:
        numbers["reached"] = np.zeros_like(section["reached"])
    return changed(section, **numbers)
