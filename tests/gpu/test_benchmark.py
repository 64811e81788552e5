"""The logic of `tests/benchmarks/gpu.py`, on the CPU: what it counts, prints and writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# Multiplications and additions of LeNet's four layers for one image of 28 x 28.
FORWARD = 2 * (28 * 28 * 32 * 25 + 14 * 14 * 64 * 32 * 25 + 3136 * 1024 + 1024 * 10)


def benchmark(*words: str | Path, name: str = "gpu") -> subprocess.CompletedProcess[str]:
    script = ROOT / "tests" / "benchmarks" / f"{name}.py"
    return subprocess.run(
        [sys.executable, script, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_figures_on_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    words = ("--device", "cpu", "--samples", 12, "--batch-size", 8, "--repeat", 1)
    done = benchmark(*map(str, words), "--oracle-samples", "6", "--peak", "67", "--json", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cpu, PyTorch")
    assert "of 67" not in done.stdout  # a CPU is not held against a GPU's peak
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert "share_of_peak" not in figures
    assert figures["batches"] == figures["batches_kept"] == 2
    assert figures["oracle_samples"] == 6
    assert figures["relative_error"] < 1e-5
    # Six products of a forward pass's size a layer, and fewer in the first, whose input is given.
    assert 5.5 < figures["operations"] / 12 / FORWARD < 6
    rate = figures["operations"] / figures["seconds"]["product"]["median"] / 1e12
    assert figures["tflop_a_second"] == pytest.approx(rate)


def test_peaks_by_the_name_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    from gpu import peak_of

    assert peak_of("NVIDIA H100 80GB HBM3") == 67
    assert peak_of("NVIDIA H100 PCIe") == 51
    assert peak_of("NVIDIA A100-SXM4-80GB") == 19.5
    assert peak_of("NVIDIA GeForce RTX 3060") is None


def test_gpts_have_the_parameters_of_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    from gpu_gpt import GPT, SIZES

    with torch.device("meta"):
        counts = {
            name: sum(part.numel() for part in GPT(size).parameters())
            for name, size in SIZES.items()
        }
    assert counts["124M"] == 124_439_808  # GPT-2's own
    assert counts["10M"] == pytest.approx(10e6, rel=0.05)


def test_tf32_is_on_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    from gpu import rounding

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic
    for numbers in ("float32", "tf32", "bfloat16"):
        with rounding(numbers):
            assert cudnn.allow_tf32 == matmul.allow_tf32 == (numbers == "tf32")
            assert cudnn.deterministic
    assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic) == before


@pytest.mark.slow
def test_a_gpts_figures_on_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    words = ("--device", "cpu", "--sizes", "tiny", "--batch-tokens", "64", "--repeat", "1")
    numbers = ("--numbers", "float32", "bfloat16")
    done = benchmark(*words, *numbers, "--json", path, name="gpu_gpt")
    assert done.returncode == 0, done.stderr
    exact, rounded = json.loads(path.read_text(encoding="utf-8"))
    assert exact["numbers"] == "float32"
    assert exact["relative_error"] < 1e-5
    assert 1e-4 < rounded["relative_error"] < 0.1
    assert exact["parameters"] == rounded["parameters"] == 7872


@pytest.mark.slow
def test_a_solve_has_the_eigenvalues_of_float64(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    words = ("--device", "cpu", "--samples", "8", "--passes", "1", "--largest", "1")
    words += ("--smallest", "1", "--tolerance", "1e-2", "--json", str(path))
    done = benchmark(*words, name="gpu_solve")
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert figures["converged"] == [True, True]
    assert figures["eigenvalue_error"] < 1e-3
    assert figures["gradient_error"] < 1e-5
