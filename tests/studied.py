"""A small job with every study, for whoever needs a result that has them all."""

from __future__ import annotations

from pathlib import Path

import hessdist
from hessdist.config.loader import load_job
from hessdist.parallel.ranks import Ranks
from hessdist.results.reader import Run
from hessdist.service.console import Console
from hessdist.service.study import study

JOB = """
name = "study"
[model]
factory = "mlp"
arguments = { widths = [6, 5, 3], activation = "tanh" }
[data]
dataset = "ours:samples"
[training]
optimizer = "sgd"
learning_rate = 0.5
steps = 20
batch_size = 16
checkpoint_steps = [0, 20]
[checkpoints]
directory = "checkpoints"
[spectrum]
largest = 4
smallest = 3
tolerance = 1e-9
[compute]
dtype = "float64"
batch_size = 16
[output]
path = "results/run.h5"
"""

STUDY = """
[study.lines]
pairs = ["smallest 1", "largest 2"]
points = 5
[study.step_sizes]
count = 40
[study.subsets]
fractions = [0.25, 0.5]
seeds = [0, 1]
steps = [20]
[study.blocks]
blocks = [["fc1"], ["fc1.bias", "fc2"]]
steps = [20]
[study.optimizer]
base = ["rmsprop"]
seeds = [0, 1, 2]
iterations = 20
evaluate_every = 10
only_negative = false
exact_at = [0, 10]
[study.exact]
operators = ["hessian", "gauss_newton"]
eigenvectors = true
picture = 10
steps = [20]
[study.density]
operators = ["hessian", "gauss_newton", "empirical_fisher", "residual"]
blocks = [["fc1", "fc2"], ["fc2"]]
probes = 6
lanczos_steps = 20
trace_products = 20
interval = [0.1, 0.5]
steps = [20]
[study.laws]
laws = ["semicircle", "marchenko_pastur", "marchenko_pastur_atom"]
operators = ["hessian"]
steps = [20]
[study.decomposition]
largest = 5
smallest = 2
exact_below = 60
steps = [20]
[study.widths]
hidden = [[2], [4, 3]]
networks = 2
at = [0, 20]
learning_rate = 0.5
exact_below = 30
lanczos_steps = 10
trace_products = 20
[study.architectures]
hidden = [[2], [3, 2]]
networks = 3
tolerance = 0.1
max_steps = 100
picture = 30
[study.initialisations]
networks = 7
tolerance = 0.1
max_steps = 100
[study.spreads]
values = [0.5, 1.5]
networks = 4
max_steps = 20
top = 2
[study.interpolation]
batch_size = 16
steps = 20
every = 10
points = 5
[study.eigenspace]
seeds = [0, 1]
gradients = 40
pairs = 3
refresh_every = 10
curvature_samples = 8
average_every = 4
rank = 3
draws = 2
evaluate_every = 20
[study.minimizers]
seeds = [0, 1]
iterations = 4
[study.critical_points]
width = 3
ratios = [0.5, 1.0]
networks = 25
descent_steps = 20
follow_steps = 30
steps = 30
fit_below = 0.3
[study.loss_model]
ratios = [0.5]
energies = [0.0, 0.2]
points = 40
index_points = 3
[study.two_layer]
sizes = [3, 4]
ratios = [0.5]
networks = 1
"""

MODULE = """
import torch
from torch.utils.data import TensorDataset

def samples(spread=1.0):
    generator = torch.Generator().manual_seed(0)
    inputs = spread * torch.randn(60, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (60,), generator=generator)
    inputs[:, 0] += labels
    return TensorDataset(inputs, labels)
"""


def prepare(folder: Path) -> None:
    (folder / "ours.py").write_text(MODULE, encoding="utf-8")
    (folder / "job.toml").write_text(JOB + STUDY, encoding="utf-8")


def run_study(folder: Path, *settings: str) -> Run:
    """Run the studies of the job in a folder, on this process, and open the result."""
    job = load_job(folder / "job.toml", list(settings))
    with Console(enabled=False) as console:
        study(*job, Ranks(), console)
    return hessdist.open_run(folder / "results" / "run.h5")
