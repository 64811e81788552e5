"""Every shipped job, shortened so that it runs in seconds: overrides, commands, tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_DOUBLE = ("compute.dtype=float64",)
_TINY_GPT = (
    'model_type="gpt2",vocab_size=256,n_positions=12,n_embd=8,n_layer=1,n_head=2,'
    "resid_pdrop=0.0,embd_pdrop=0.0,attn_pdrop=0.0,bos_token_id=0,eos_token_id=0"
)
# A law of three parameters fits a handful of eigenvalues equally well with many of them.
_LAWS = ("^/hdf5/studies/laws/", "^/figures/run-laws", "^/drawn/Laws", "^/show")


@dataclass(frozen=True)
class Shortened:
    """A job of jobs/ with overrides that keep everything that it does, at a small size.

    Args:
        job: Name of the file in jobs/, without its suffix.
        commands: Commands that the job is for, in order.
        overrides: Values of --set.
        slow: Whether it is left to the slow tests.
        rtol: Tolerance of numbers on another CPU, relative to the largest value of an array.
        unstable: Regular expressions of places whose values differ on another CPU by more than
            that: rounding errors themselves, and fits that several values serve equally well.
    """

    job: str
    commands: tuple[str, ...] = ("study",)
    overrides: tuple[str, ...] = ()
    slow: bool = False
    rtol: float = 1e-4
    unstable: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The job file."""
        return ROOT / "jobs" / f"{self.job}.toml"


def _trained(steps: int, at: list[int], samples: int, batch: int = 32) -> tuple[str, ...]:
    return (
        f"training.steps={steps}",
        f"training.checkpoint_steps={at}",
        f"data.samples={samples}",
        f"compute.batch_size={batch}",
    )


JOBS = (
    Shortened(
        "class_structure_digits",
        commands=("train", "spectrum", "study"),
        overrides=(
            *_trained(20, [0, 20], 40),
            "model.arguments.widths=[64,4,10]",
            "spectrum.largest=4",
            "study.class_structure.trace_products=10",
        ),
        slow=True,
    ),
    Shortened(
        "class_structure_mnist",
        commands=("train", "spectrum", "study"),
        overrides=(
            *_DOUBLE,
            *_trained(6, [0, 6], 20, 10),
            "spectrum.largest=3",
            "study.class_structure.trace_products=6",
        ),
        slow=True,
    ),
    Shortened(
        "convergence_digits",
        overrides=(
            "data.samples=150",
            "model.arguments.widths=[64,3,10]",
            "study.convergence.seeds=[0,1]",
            "study.convergence.penalties=[0.0,0.01]",
            "study.convergence.iterations=200",
            "study.convergence.networks=1",
            "study.convergence.network_iterations=20",
            "study.convergence.newton_iterations=5",
            "study.convergence.conditions=[10,30]",
        ),
        unstable=("/(quadratic_rounding|minimum_gradient)/", "^/show"),  # they are rounding
        slow=True,
    ),
    Shortened(
        "critical_points",
        overrides=(
            "study.critical_points.width=3",
            "study.critical_points.ratios=[0.25,0.75]",
            "study.critical_points.networks=20",
            "study.critical_points.fit_below=0.3",
        ),
        # Searches that find no critical point wander off, each to another place.
        unstable=("/(gradient_norm|largest_weights|steps)/",),
    ),
    Shortened(
        "critical_points_16",
        overrides=(
            "study.critical_points.width=3",
            "study.critical_points.ratios=[0.5]",
            "study.critical_points.networks=10",
            "study.critical_points.descent_steps=100",
            "study.critical_points.fit_below=0.3",
        ),
        unstable=("/(gradient_norm|largest_weights|steps)/",),
        slow=True,
    ),
    Shortened(
        "curvature_optimizer_mnist",
        overrides=(
            *_DOUBLE,
            "data.samples=40",
            "study.optimizer.seeds=[0,1]",
            "study.optimizer.iterations=10",
            "study.optimizer.evaluate_every=5",
            "study.optimizer.exact_at=[10]",
            "spectrum.smallest=2",
            "spectrum.tolerance=1e-2",
        ),
        slow=True,
    ),
    Shortened(
        "debugging_digits",
        ("train", "study"),
        (
            "training.steps=5",
            "training.checkpoint_steps=[0,5]",
            "data.samples=100",
            "compute.batch_size=100",
            "study.restarts.seeds=[0,1]",
            "study.restarts.iterations=20",
            "study.differences.points=5",
        ),
        # Errors of differences are rounding at small lengths.
        unstable=("/(forward|central)/", "^/figures/run-differences", "^/drawn/Products", "^/show"),
        slow=True,
    ),
    Shortened(
        "decomposition_mnist",
        ("train", "study"),
        (
            *_DOUBLE,
            *_trained(10, [0, 10], 40, 40),
            "spectrum.tolerance=1e-2",
            "study.decomposition.largest=4",
            "study.decomposition.smallest=2",
            "study.decomposition.trace_products=6",
            "study.decomposition.lanczos_steps=8",
        ),
        slow=True,
    ),
    Shortened(
        "demo",
        ("train", "spectrum"),
        (*_DOUBLE, *_trained(20, [0, 10, 20], 60), "spectrum.largest=5"),
    ),
    Shortened(
        "density_mnist",
        ("train", "study"),
        (
            *_DOUBLE,
            *_trained(10, [0, 10], 40),
            "model.factory=lenet5",
            "study.density.probes=2",
            "study.density.lanczos_steps=15",
            "study.density.trace_products=8",
            "study.density.steps=[10]",
            "study.laws.steps=[10]",
            'study.laws.operators=["hessian"]',
        ),
        unstable=_LAWS,
        slow=True,
    ),
    Shortened(
        "diagnosis_digits",
        ("train", "diagnose"),
        (
            "training.steps=100",
            "training.checkpoint_steps=[0,10,100]",
            "data.samples=200",
            "training.batch_size=200",
            "spectrum.largest=4",
            "spectrum.smallest=4",
        ),
    ),
    Shortened(
        "diagnosis_mnist",
        ("train", "spectrum", "diagnose"),
        (*_trained(20, [0, 20], 60), "spectrum.largest=4"),
        rtol=1e-2,
        slow=True,
    ),
    Shortened(
        "eigenspace_mnist",
        overrides=(
            *_DOUBLE,
            "model.arguments={widths=[784,8,8,10]}",
            "data.samples=200",
            "study.eigenspace.base_learning_rates=[0.1,0.5]",
            "study.eigenspace.seeds=[0,1]",
            "study.eigenspace.gradients=80",
            "study.eigenspace.pairs=3",
            "study.eigenspace.refresh_every=20",
            "study.eigenspace.curvature_samples=64",
            "study.eigenspace.average_every=5",
            "study.eigenspace.rank=3",
            "study.eigenspace.draws=2",
            "study.eigenspace.evaluate_every=20",
        ),
        slow=True,
    ),
    Shortened(
        "gpt2",  # a tiny one, trained here, on bytes
        ("train", "spectrum"),
        (
            *_DOUBLE,
            *_trained(4, [0, 4], 6, 3),
            "model.arguments={config={" + _TINY_GPT + "}}",
            "data.dataset=pydoc",
            "data.arguments={length=12}",
            "compute.device=cpu",
            "spectrum.largest=3",
            "spectrum.smallest=2",
        ),
        slow=True,
    ),
    Shortened(
        "gpt_text",
        ("train", "spectrum"),
        (
            *_DOUBLE,
            *_trained(10, [0, 10], 8, 4),
            "training.warmup_steps=3",
            "model.arguments={config={" + _TINY_GPT + "}}",
            "data.arguments={length=12}",
            "spectrum.largest=3",
            "spectrum.smallest=2",
        ),
    ),
    Shortened(
        "laws_mnist",
        ("train", "study"),
        (
            *_trained(20, [0, 20], 60, 60),
            'model.arguments={widths=[784,1,4,10],activation="tanh"}',
            "study.exact.picture=20",
            "study.exact.steps=[20]",
            "study.density.probes=2",
            "study.density.lanczos_steps=15",
            'study.laws.operators=["hessian"]',
        ),
        unstable=_LAWS,
        slow=True,
    ),
    Shortened(
        "lenet_mnist",
        ("train", "spectrum"),
        (
            "training.steps=2",
            "training.checkpoint_steps=[2]",
            "data.fraction=0.0002",
            "spectrum.largest=2",
            "spectrum.smallest=1",
            "spectrum.tolerance=2e-2",
        ),
        rtol=1e-2,
        slow=True,
    ),
    Shortened(
        "loss_model",
        overrides=(
            "study.loss_model.ratios=[0.25,0.75]",
            "study.loss_model.energies=[0.0,0.3]",
            "study.loss_model.points=60",
            "study.loss_model.index_points=6",
        ),
    ),
    Shortened(
        "minimize_digits",
        ("minimize", "spectrum", "study"),
        (
            'model.arguments={widths=[64,8,10],activation="tanh"}',
            "data.samples=200",
            "spectrum.largest=4",
            "minimize.iterations=20",
            "study.minimizers.seeds=[0,1]",
            "study.minimizers.iterations=15",
        ),
        slow=True,
    ),
    Shortened(
        "minimize_mnist",
        ("minimize", "study"),
        (
            "data.samples=40",
            "minimize.iterations=10",
            "minimize.checkpoint_every=5",
            "study.minimizers.seeds=[0]",
            "study.minimizers.iterations=4",
            "study.minimizers.gradients=60",
        ),
        slow=True,
    ),
    Shortened(
        "negative_curvature_lenet5",
        ("train", "spectrum", "study"),
        (
            *_DOUBLE,
            "training.steps=10",
            "training.checkpoint_steps=[0,10]",
            "data.samples=40",
            "spectrum.largest=3",
            "spectrum.smallest=2",
            "spectrum.tolerance=1e-2",
            "study.lines.points=7",
            "study.lines.steps=[10]",
            "study.step_sizes.count=8",
            "study.step_sizes.steps=[10]",
        ),
        slow=True,
    ),
    Shortened(
        "negative_curvature_mnist",
        ("train", "spectrum", "study"),
        (
            *_DOUBLE,
            "training.steps=10",
            "training.checkpoint_steps=[0,10]",
            "data.fraction=0.001",
            "compute.batch_size=60",
            "model.factory=lenet5",
            "spectrum.largest=3",
            "spectrum.smallest=2",
            "spectrum.tolerance=1e-2",
            "study.lines.points=7",
            "study.lines.steps=[10]",
            "study.step_sizes.count=8",
            "study.step_sizes.steps=[10]",
            "study.blocks.steps=[10]",
            "study.blocks.largest=2",
            "study.blocks.smallest=1",
        ),
        slow=True,
    ),
    Shortened(
        "paths_digits",
        overrides=(
            "data.samples=60",
            "study.paths.hidden=[[2],[3,2]]",
            "study.paths.pairs=2",
            "study.paths.steps=40",
            "study.paths.every=20",
            "study.paths.points=9",
            "study.paths.path_steps=20",
            "study.paths.walk_steps=3",
            "study.paths.walk_below=190",
        ),
        slow=True,
    ),
    Shortened(
        "paths_mnist",
        overrides=(
            "data.samples=60",
            "study.paths.hidden=[[2],[3,2]]",
            "study.paths.pairs=2",
            "study.paths.steps=40",
            "study.paths.every=20",
            "study.paths.points=5",
        ),
        slow=True,
    ),
    Shortened(
        "penalty_lines_mnist",
        ("train", "spectrum", "study"),
        (
            *_DOUBLE,
            "training.steps=10",
            "training.checkpoint_steps=[10]",
            "data.samples=40",
            "loss.l2=1e-3",
            "spectrum.tolerance=1e-2",
            "study.lines.points=5",
        ),
    ),
    Shortened(
        "posterior_digits",
        overrides=(
            "data.samples=12",
            "study.posterior.hidden=[[2],[4]]",
            "study.posterior.networks=2",
            "study.posterior.at=[0,20]",
            "study.posterior.rank=5",
        ),
        # Eigenvalues of the Gram matrix that are zero are rounding.
        unstable=("^/hdf5/studies/posterior/eigenvalue",),
    ),
    Shortened(
        "progression_cifar10",
        ("train", "spectrum"),
        (
            *_DOUBLE,
            "model.factory=lenet5",
            "training.steps=10",
            "training.checkpoint_steps=[0,5,10]",
            "data.fraction=0.001",
            "compute.batch_size=50",
            "spectrum.largest=5",
        ),
        slow=True,
    ),
    Shortened(
        "saddle_digits",
        overrides=(
            "data.samples=100",
            "training.learning_rate=1.0",
            "study.saddle.noise=[1.0]",
            "study.saddle.displacement=0.1",
            "study.saddle.seeds=[0,1]",
            "study.saddle.iterations=30",
        ),
    ),
    Shortened(
        "sharpness_digits",
        overrides=(
            "model.arguments.widths=[64,4,10]",
            "data.samples=60",
            "study.sharpness.seeds=[0,1]",
            "study.sharpness.iterations=12",
            "study.sharpness.full_every=6",
        ),
        slow=True,
    ),
    Shortened(
        "singularity_blobs",
        overrides=(
            "data.arguments={samples=40,spread=0.3,seed=0}",
            "study.architectures.hidden=[[2,2],[4,4]]",
            "study.architectures.networks=3",
            "study.architectures.pictured=0",
            "study.architectures.picture=20",
            "study.architectures.max_steps=200",
            "study.initialisations.networks=20",
            "study.initialisations.max_steps=200",
            "study.spreads.values=[0.2,1.0]",
            "study.spreads.networks=4",
            "study.spreads.max_steps=200",
        ),
        slow=True,
    ),
    Shortened(
        "singularity_mnist",
        overrides=(
            "data.samples=100",
            "study.architectures.hidden=[[1,1],[1,2]]",
            "study.architectures.picture=20",
            "study.architectures.max_steps=100",
            "study.interpolation.steps=40",
            "study.interpolation.points=5",
        ),
        slow=True,
    ),
    Shortened(
        "singularity_patterns",
        overrides=(
            "data.samples=40",
            "model.arguments={widths=[64,2,2,10],activation='tanh'}",
            "study.spreads.values=[0.0,1.0]",
            "study.spreads.networks=2",
            "study.spreads.top=166",
            "study.spreads.max_steps=100",
        ),
        slow=True,
    ),
    Shortened(
        "singularity_random",
        overrides=(
            "data.arguments={samples=60,shape=[1,8,8],num_classes=4,seed=0}",
            "model.arguments={widths=[64,4,4,4]}",
            "study.architectures.hidden=[[2,2],[4,4]]",
            "study.architectures.picture=20",
            "study.architectures.max_steps=300",
        ),
        slow=True,
    ),
    Shortened(
        "singularity_spreads",
        overrides=(
            "data.arguments={samples=40,spread=0.3,seed=0}",
            "model.arguments={widths=[2,2,2],activation='tanh'}",
            "study.spreads.values=[0.2,1.0]",
            "study.spreads.networks=4",
            "study.spreads.max_steps=100",
            "study.spreads.newton_steps=5",
        ),
        slow=True,
    ),
    Shortened(
        "stability_digits",
        commands=("train", "spectrum", "study"),
        overrides=(
            *_trained(20, [0, 10, 20], 40),
            "model.arguments.widths=[64,4,10]",
            "training.negative_curvature=0.5",
            "spectrum.largest=4",
            "spectrum.smallest=3",
            "study.stability.largest=3",
            "study.stability.smallest=2",
            "study.stability.reference=20",
        ),
        slow=True,
        # How wrong an angle can be depends on residuals.
        unstable=("/(angle|space)_error_", "^/show"),
    ),
    Shortened(
        "subset_against_full_mnist",
        ("train", "spectrum", "study"),
        (
            *_DOUBLE,
            "training.steps=10",
            "training.checkpoint_steps=[0,10]",
            "data.samples=100",
            "compute.batch_size=100",
            "spectrum.largest=4",
            "spectrum.smallest=3",
            "study.subsets.fractions=[0.2,0.5]",
            "study.subsets.seeds=[0,1]",
            "study.subsets.steps=[10]",
        ),
        slow=True,
    ),
    Shortened(
        "tails_digits",
        commands=("train", "study"),
        overrides=(
            *_trained(20, [0, 20], 60),
            "model.arguments.widths=[64,3,10]",
            "study.tails.draws=10",
        ),
        # Eigenvalues near zero are rounding, and a tail may begin at another one.
        unstable=(
            "^/hdf5/studies/(tails|exact)/",
            "^/show",
            "^/figures/run-tails",
            "^/drawn/",
            "^/page",
        ),
    ),
    Shortened(
        "two_layer",
        overrides=(
            "study.two_layer.sizes=[4,6]",
            "study.two_layer.ratios=[0.5,4.0]",
            "study.two_layer.networks=2",
        ),
        slow=True,
    ),
    Shortened(
        "vit_cifar10",
        ("train", "spectrum"),
        (
            *_DOUBLE,
            *_trained(6, [0, 6], 8, 8),
            "training.warmup_steps=2",
            "model.arguments.config.hidden_size=8",
            "model.arguments.config.intermediate_size=8",
            "model.arguments.config.num_hidden_layers=1",
            "model.arguments.config.patch_size=16",
            "spectrum.largest=3",
            "spectrum.smallest=2",
        ),
        slow=True,
    ),
    Shortened(
        "widths_digits",
        overrides=(
            "data.samples=30",
            "study.widths.hidden=[[2],[4]]",
            "study.widths.networks=2",
            "study.widths.at=[0,20]",
            "study.widths.starts=3",
            "study.widths.exact_below=200",
            "study.widths.trace_products=20",
            "study.widths.lanczos_steps=15",
        ),
        slow=True,
    ),
)
"""All jobs of jobs/, in order of their names."""
