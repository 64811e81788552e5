"""The callbacks of real trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hessdist
from hessdist.callbacks import (
    Checkpoints,
    Monitor,
    Solves,
    lightning_callback,
    trainer_callback,
)
from hessdist.workload.steps import find_checkpoints

FEW: dict[str, Any] = {"largest": 2, "smallest": 1, "tolerance": 1e-5}


class Labelled(nn.Module):
    """A network that returns its loss, as the Trainer of transformers wants it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.1), nn.Linear(5, 3))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def samples() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 4, generator=generator)
    labels = torch.randint(0, 3, (24,), generator=generator)
    return [{"x": x, "labels": label} for x, label in zip(inputs, labels, strict=True)]


def summed(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    return model(**batch)["loss"] * len(batch["x"]), len(batch["x"])


def fine_tuned(folder: Path, monitors: list[Monitor], **arguments: Any) -> Labelled:
    """Train by transformers' Trainer, which makes two groups of parameters."""
    from transformers import Trainer, TrainingArguments

    model = Labelled()
    settings = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=4,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=2,
        learning_rate=0.01,
        weight_decay=0.1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
        **arguments,
    )
    callbacks = [trainer_callback(monitor) for monitor in monitors]
    Trainer(model, settings, train_dataset=samples(), callbacks=callbacks).train()
    return model


def test_the_trainer_of_transformers(tmp_path: Path) -> None:
    path, folder = tmp_path / "run.h5", tmp_path / "checkpoints"
    model = fine_tuned(
        tmp_path,
        [
            Monitor(Solves(path, summed, samples(), metric="optimizer", **FEW), every=2),
            Monitor(Checkpoints(folder), every=2),
        ],
    )
    without = fine_tuned(tmp_path, [])
    assert all(map(torch.equal, model.parameters(), without.parameters()))
    assert hessdist.open_run(path).steps.tolist() == [2, 4]
    assert np.isfinite(hessdist.open_run(path).eigenvalues_largest).all()
    assert [one.step for one in find_checkpoints(folder)] == [0, 2, 4]


def test_the_trainer_of_transformers_in_bfloat16(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    model = fine_tuned(
        tmp_path, [Monitor(Solves(path, summed, samples(), **FEW), every=4)], bf16=True
    )
    for wrapped in ("forward", "_original_forward"):
        vars(model).pop(wrapped, None)
    expected = hessdist.extreme_eigenpairs(model, summed, samples(), **FEW)
    run = hessdist.open_run(path)
    assert run.steps.tolist() == [0, 4]
    assert np.array_equal(run[4].eigenvalues_largest, expected.eigenvalues_largest)


def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        """Logs a number in every pass, which needs a trainer."""

        def __init__(self) -> None:
            super().__init__()
            self.model = Labelled()

        def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
            return self.model(**batch)  # type: ignore[no-any-return]

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self(**batch)["loss"]  # type: ignore[no-any-return]

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    def trained(monitors: list[Monitor]) -> Any:
        module = Module()
        lightning.seed_everything(1, verbose=False)
        trainer = lightning.Trainer(
            max_steps=4,
            accumulate_grad_batches=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[lightning_callback(monitor) for monitor in monitors],
        )
        loader = torch.utils.data.DataLoader(samples(), batch_size=3, shuffle=True)
        trainer.fit(module, loader)
        return module

    path, folder = tmp_path / "run.h5", tmp_path / "checkpoints"
    monitors = [
        Monitor(Solves(path, summed, samples(), metric="optimizer", **FEW), every=2),
        Monitor(Checkpoints(folder), every=2),
    ]
    module = trained(monitors)
    assert all(map(torch.equal, module.parameters(), trained([]).parameters()))
    run = hessdist.open_run(path)
    assert run.steps.tolist() == [2, 4]
    assert run.parameters[0].name == "model.net.0.weight"
    assert np.isfinite(run.stability_bound).all()
    assert [one.step for one in find_checkpoints(folder)] == [0, 2, 4]
