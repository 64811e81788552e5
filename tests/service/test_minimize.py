"""`hessdist minimize`: the trace, checkpoints, going on, refusals, signals."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hessdist
from hessdist.config.loader import load_job
from hessdist.curvature.products import LocalProduct
from hessdist.errors import (
    CheckpointError,
    JobError,
    NumericalError,
    OutputError,
    ResultError,
    Stopped,
)
from hessdist.optimizers.full_batch import Ended
from hessdist.optimizers.training_problem import TrainingProblem
from hessdist.parallel.ranks import Ranks
from hessdist.results.units import Measurements
from hessdist.service.console import Console
from hessdist.service.minimize import MinimizeResult, minimize_job, remedy
from hessdist.service.study import study
from hessdist.service.workload import workload_of
from hessdist.spectrum import petsc
from hessdist.studies.eigenspaces import minimize as service
from hessdist.studies.shows import figures, tables
from hessdist.workload.checkpoints import checkpoint_name, read_state

WORDS = ("minimize.tolerance=1e-9", "minimize.checkpoint_every=3", "minimize.cg_iterations=8")


@pytest.fixture(autouse=True)
def _in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def minimized(job: Path, *words: str, **how: Any) -> MinimizeResult:
    loaded, text = load_job(job, (*WORDS, *words))
    return minimize_job(loaded, text, Ranks(), Console(enabled=False), **how)


def trace() -> Measurements:
    return hessdist.open_run("results/digits.h5").studies["minimize"]


def steps() -> list[int]:
    return sorted(int(path.stem[-8:]) for path in Path("checkpoints").glob("*.pt"))


def iterations(count: int) -> str:
    return f"minimize.iterations={count}"


def test_the_trace_and_the_checkpoints(job: Path) -> None:
    result = minimized(job, iterations(7))
    assert (result.converged, result.reason) == (False, "all 7 iterations are done")
    assert result.can_continue
    section = trace()
    assert list(section["iteration"]) == list(range(8))
    assert list(section["checkpoint"]) == steps() == [0, 3, 6, 7]
    assert (np.diff(section["loss"]) < 0).all()
    assert section["loss"][-1] == result.loss
    assert np.isnan(section["step_length"][0])
    assert (section["step_length"][1:] == 0.5 ** (section["trials"][1:] - 1)).all()
    assert (np.diff(section["products"]) == section["cg_iterations"][1:]).all()
    cost = section["gradients"] + section["losses"] / 3 + 2 * section["products"]
    assert section["cost"] == pytest.approx(cost)
    assert (np.diff(section["seconds"]) > 0).all()
    assert not section["converged"]
    assert str(section["ended"]) == "all 7 iterations are done"
    assert section.variables["seconds"].units == "s"

    # The first checkpoint is the start of training, and each has the loss that the trace says.
    run = hessdist.open_run("results/digits.h5")
    shown = [str(table.title) for table in tables(run)]
    assert any("not converged, all 7 iterations are done" in title for title in shown)
    assert "minimize" in dict(figures(run, "digits"))
    loaded, _ = load_job(job)

    objective = workload_of(loaded).on(Ranks())
    for row in (0, 3, 7):
        state = read_state(Path("checkpoints") / checkpoint_name(row))
        objective.load(lambda model, state=state: model.load_state_dict(state))  # type: ignore[misc]
        there = objective.evaluate()
        assert section["loss"][row] == pytest.approx(there.loss, rel=1e-12)
        assert section["gradient_norm"][row] == pytest.approx(there.gradient_norm, rel=1e-10)


def test_it_goes_on_with_more_iterations_as_if_it_had_never_ended(job: Path) -> None:
    minimized(job, iterations(4))
    early = trace()
    assert minimized(job, iterations(9)).reason == "all 9 iterations are done"
    late = trace()
    assert list(late["checkpoint"]) == [0, 3, 4, 6, 9]
    for name in ("loss", "trials", "products"):
        assert (late[name][:5] == early[name]).all()
    assert (np.diff(late["seconds"]) > 0).all()
    for path in Path("results").rglob("*.h5"):
        path.unlink()
    for path in Path("checkpoints").iterdir():
        path.unlink()
    minimized(job, iterations(9))
    whole = trace()
    assert late["loss"] == pytest.approx(whole["loss"], rel=1e-12)
    for name in ("trials", "cg_iterations", "negative_curvature", "products"):
        assert (late[name] == whole[name]).all()
    # Its first gradient is one that was made before.
    assert (late["gradients"][5:] == whole["gradients"][5:] + 1).all()


def test_what_is_done_is_not_done_again(job: Path) -> None:
    first = minimized(job, iterations(3))
    again = minimized(job, iterations(3))
    assert (first.done_before, again.done_before) == (False, True)
    assert (again.converged, again.reason) == (False, "all 3 iterations are done")
    assert again.can_continue
    assert again.loss == first.loss
    loose = minimized(job, iterations(3), "minimize.tolerance=10")
    assert loose.done_before
    assert loose.converged
    assert trace()["converged"]  # and the file says so
    assert str(trace()["ended"]) == "the norm of the gradient is within 10"
    minimized(job, iterations(3))
    assert not trace()["converged"]
    # Options that only show something are no other settings.
    assert minimized(job, iterations(3), options=("-tao_monitor", "-log_view")).done_before


def test_other_settings_are_refused_unless_they_may_replace_it(job: Path) -> None:
    minimized(job, iterations(3))
    Path("other.pt").write_bytes((Path("checkpoints") / checkpoint_name(3)).read_bytes())
    for words, options in (
        (("minimize.method=lbfgs",), ()),
        (("training.seed=5",), ()),
        (("minimize.start=other.pt",), ()),
        ((), ("-tao_ls_type", "unit")),
    ):
        with pytest.raises(OutputError, match=r"with other settings of \[minimize\]"):
            minimized(job, iterations(3), *words, options=options)
    assert steps() == [0, 3]
    result = minimized(job, iterations(2), "minimize.start=other.pt", overwrite=True)
    assert not result.done_before
    assert steps() == [0, 2]  # the old ones are gone
    torch.testing.assert_close(
        read_state(Path("checkpoints") / checkpoint_name(0)), read_state(Path("other.pt"))
    )


def test_checkpoints_of_another_run_are_left_alone(job: Path) -> None:
    Path("checkpoints").mkdir()
    (Path("checkpoints") / "model_40.pt").touch()
    with pytest.raises(OutputError, match="has checkpoints of another run, such as step 40"):
        minimized(job, iterations(3), overwrite=True)


def test_a_checkpoint_of_the_same_name_that_another_run_wrote_is_left_alone(job: Path) -> None:
    minimized(job, iterations(3))
    last = Path("checkpoints") / checkpoint_name(3)
    last.write_bytes((Path("checkpoints") / checkpoint_name(0)).read_bytes())
    for words in ((), ("minimize.method=lbfgs",)):
        with pytest.raises(OutputError, match="has checkpoints of another run, such as step 3"):
            minimized(job, iterations(5), *words, overwrite=True)
    assert steps() == [0, 3]
    last.unlink()
    minimized(job, iterations(5))
    assert steps() == [0, 3, 5]


def test_what_cannot_go_on_does_so_without_its_last_checkpoint(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(*given: Any) -> Ended:
        minimize(*given)
        return Ended(False, "the line search found no decrease")

    minimize = service.minimize
    with monkeypatch.context() as patch:
        patch.setattr(service, "minimize", stuck)
        minimized(job, iterations(4))
    assert minimized(job, iterations(6)).reason == "the line search found no decrease"
    assert minimized(job, iterations(6)).done_before
    (Path("checkpoints") / checkpoint_name(4)).unlink()  # as a kill before it leaves it
    assert minimized(job, iterations(6)).reason == "all 6 iterations are done"
    assert list(trace()["iteration"]) == list(range(7))


def test_a_product_that_is_not_finite_leaves_the_iterate(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply, calls = LocalProduct.__call__, []

    def failing(self: LocalProduct, v: Any) -> Any:
        calls.append(1)
        if len(calls) == 14:
            raise NumericalError("rank 0: the product over batch 1 is not finite", "check the data")
        return multiply(self, v)

    with monkeypatch.context() as patch:
        patch.setattr(LocalProduct, "__call__", failing)
        with pytest.raises(NumericalError, match=r"batch 1 is not finite, after iteration \d"):
            minimized(job, iterations(8))
    section = trace()
    assert str(section["ended"]) == "rank 0: the product over batch 1 is not finite"
    assert steps()[-1] == section["iteration"][-1] > 0
    assert steps()[-1] % 3  # none that would be written anyway
    minimized(job, iterations(8))
    assert list(trace()["iteration"]) == list(range(9))


def test_studies_of_minimisers_count_taos_options(job: Path) -> None:
    small = ("study.minimizers.seeds=[0]", "study.minimizers.iterations=1")
    loaded, text = load_job(job, small)

    def studied(*options: str) -> list[str]:
        outcome = study(loaded, text, Ranks(), Console(enabled=False), options=options)
        return [unit.name for unit in outcome.done]

    with pytest.raises(JobError, match="-tao_type replaces every method"):
        studied("-tao_type", "lmvm")
    assert studied("-tao_monitor") == ["minimizers"]
    assert studied() == []
    with pytest.raises(OutputError, match=r"with other settings of \[study.minimizers\]"):
        studied("-tao_ls_type", "unit")


def test_a_start_that_is_not_there(job: Path) -> None:
    with pytest.raises(CheckpointError, match=r"minimize.start: gone.pt cannot be read"):
        minimized(job, "minimize.start=gone.pt")


def test_the_result_of_another_job_is_left_alone(job: Path) -> None:
    minimized(job, iterations(1))
    with pytest.raises(ResultError, match="is the result of another job"):
        minimized(job, iterations(1), "data.samples=50")


def test_only_the_layers_of_the_job_move(job: Path) -> None:
    minimized(job, iterations(3), "spectrum.layers=['fc2']")
    first, last = (read_state(Path("checkpoints") / checkpoint_name(n)) for n in (0, 3))
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved == {"fc2.weight", "fc2.bias"}


def test_fewer_iterations_by_taos_option_are_no_end_of_all(job: Path) -> None:
    known = petsc.initialise()[0].Options()
    known["tao_max_it"] = 2
    try:
        reasons = [minimized(job, iterations(5)).reason for _ in range(3)]
    finally:
        known.delValue("tao_max_it")
    assert reasons[:2] == ["the 2 iterations of -tao_max_it are done"] * 2
    assert len(trace()["iteration"]) == 7
    assert reasons[2] == "all 5 iterations are done"


def test_a_signal_leaves_the_iterate_and_the_same_command_goes_on(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, calls = TrainingProblem.loss_and_gradient, []

    def signalled(self: TrainingProblem, x: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGUSR1)
        return evaluate(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProblem, "loss_and_gradient", signalled)
        with pytest.raises(Stopped, match=r"stopped on a signal after [2-5] of 8 iterations"):
            minimized(job, iterations(8))
    section = trace()
    last = int(section["iteration"][-1])
    assert str(section["ended"]) == "stopped on a signal"
    assert steps()[-1] == last
    minimized(job, iterations(8))
    assert list(trace()["iteration"]) == list(range(9))
    assert (trace()["loss"][: last + 1] == section["loss"]).all()


def test_remedies() -> None:
    flat = {"converged": False, "reason": "the line search found no decrease in 34 trials"}
    assert "compute.dtype = 'float64' with minimize.start" in remedy(**flat, dtype="float32")
    assert "raise minimize.tolerance" in remedy(**flat, dtype="float64")
    for dtype in ("float32", "float64"):
        end = "another output.path and checkpoints.directory"
        assert remedy(**flat, dtype=dtype).endswith(end)
    limited = {"converged": False, "can_continue": True, "dtype": "float64"}
    found = remedy(reason="all 6 iterations are done", **limited)
    assert found.startswith("raise minimize.iterations and start")
    found = remedy(reason="the 2 iterations of -tao_max_it are done", **limited)
    assert found.startswith("start the same command again")
    assert remedy(converged=True, reason="small", dtype="float64") == ""
