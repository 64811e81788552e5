"""The progress of a solve, and its result in one line."""

from __future__ import annotations

import time

from hessdist.config.sections import SpectrumSection
from hessdist.objective import Evaluation
from hessdist.service.console import Console
from hessdist.service.locks import Lock
from hessdist.service.metrics import Metrics
from hessdist.spectrum.eigenpairs import Eigenpairs
from hessdist.spectrum.krylov_schur import Progress
from hessdist.spectrum.shell import ShellMatrix


class SolveProgress:
    """Reports the progress of a solve to the console, the metrics and the claim.

    Args:
        step: The step of the checkpoint.
        wanted: The job's section spectrum.
        console: The console.
        metrics: The metrics.
        claim: The lock of the checkpoint, which `hessdist status` reads; None on other ranks.
        expected: Number of products of the solve before, an estimate until the first restart.
        interval: Seconds between two updates of the claim, each of which writes a file.
    """

    shell: ShellMatrix

    def __init__(
        self,
        step: int,
        wanted: SpectrumSection,
        console: Console,
        metrics: Metrics,
        claim: Lock | None,
        expected: int | None,
        interval: float = 5.0,
    ) -> None:
        self._step, self._wanted, self._expected = step, wanted, expected
        self._console, self._metrics, self._claim = console, metrics, claim
        self._interval = interval
        self._progress: Progress | None = None
        self._described = -interval

    def after_restart(self, progress: Progress) -> None:
        """Record what has converged."""
        self._progress = progress

    def after_product(self, products: int) -> None:
        """Report a product."""
        self._write_to_console(products)
        self._metrics.product(self.shell, **self._fields())
        now = time.monotonic()
        if self._claim is not None and now - self._described >= self._interval:
            self._described = now
            self._claim.describe_holder(step=self._step, products=products)

    def _write_to_console(self, products: int) -> None:
        status = ""
        expected = None if self._expected is None else max(self._expected, products)
        if (progress := self._progress) is not None:
            status = (
                f"{progress.converged_largest}+{progress.converged_smallest} of "
                f"{self._wanted.largest}+{self._wanted.smallest} converged, worst residual "
                f"{progress.worst_residual:.1e}"
            )
            if progress.to_go is not None:
                expected = max(products, progress.products + progress.to_go)
        self._console.solve(f"step {self._step}", products, expected, status)

    def _fields(self) -> dict[str, float]:
        if self._progress is None:
            return {}
        names = ("converged_largest", "converged_smallest", "worst_residual")
        return {name: getattr(self._progress, name) for name in names}


def summary_line(step: int, here: Evaluation, pairs: Eigenpairs, replayed: int) -> str:
    """Summarise a solve in one line.

    Args:
        step: The step of the checkpoint.
        here: Loss and gradient at the checkpoint.
        pairs: The eigenpairs.
        replayed: Number of products that came from the journal.

    Returns:
        The line.
    """
    top, bottom = pairs.largest, pairs.smallest
    ends = [f"λ₁ {top.values[0]:.6g}"] if len(top.values) else []
    ends += [f"λ_d {bottom.values[0]:.6g}"] if len(bottom.values) else []
    worst = max([*top.residuals, *bottom.residuals])
    kept = f" ({replayed} from the journal)" if replayed else ""
    if pairs.reduced_products:
        kept += f" ({pairs.reduced_products} of reduced precision)"
    if pairs.copies:
        kept += f" (with further solves for {pairs.copies} copies of repeated eigenvalues)"
    text = (
        f"step {step}: loss {here.loss:.6g}, {', '.join(ends)}, {pairs.products} products{kept}, "
        f"residuals up to {worst:.1e}, {pairs.seconds:.1f} s"
    )
    if pairs.converged:
        return text
    short = int((~top.converged).sum() + (~bottom.converged).sum())
    return f"{text}; {short} pairs unconverged: {pairs.outcome.value}"
