"""[study.blocks] by depth and kind, of a tiny GPT-2 against its dense Hessian in float64."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from numpy.typing import NDArray
from shown import figures_of, run_of
from torch import nn
from torch.nn import functional as F

import hessdist
import hessdist.losses
from hessdist.config.job import Job
from hessdist.config.loader import load_job
from hessdist.config.studies import registry
from hessdist.errors import InputError
from hessdist.parallel.ranks import Ranks
from hessdist.results.units import Measurements, Variable
from hessdist.service.console import Console
from hessdist.service.study import study
from hessdist.service.sweep import sweep
from hessdist.service.units import settings_hash
from hessdist.studies.negative_curvature.kinds import by_depth_and_kind
from hessdist.studies.negative_curvature.settings import BlocksSection
from hessdist.workload.models import build_model

JOB = """
name = "gpt"
[model]
factory = "huggingface"
[model.arguments.config]
model_type = "gpt2"
vocab_size = 5
n_positions = 4
n_embd = 4
n_layer = 2
n_head = 2
n_inner = 2
bos_token_id = 0
eos_token_id = 0
[data]
dataset = "tokens"
arguments = { path = "ids.npy", length = 4 }
[loss]
factory = "causal_lm"
[checkpoints]
directory = "checkpoints"
[spectrum]
largest = 2
smallest = 2
tolerance = 1e-9
[compute]
dtype = "float64"
batch_size = 16
[output]
path = "results/run.h5"
[study.blocks]
by = "depth_and_kind"
largest = 2
smallest = 2
"""
STEPS = (0, 10)
BLOCKS = [
    "embeddings", "0 norms", "0 attention", "0 mlp", "1 norms", "1 attention", "1 mlp", "norms",
]  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    folder: Path
    names: list[str]  # of the block of each parameter
    hessians: dict[int, NDArray[np.float64]]
    model: nn.Module
    ids: torch.Tensor

    @property
    def measured(self) -> Measurements:
        return hessdist.open_run(self.folder / "results" / "run.h5").studies["blocks"]

    def of(self, block: str) -> NDArray[np.bool_]:
        return np.array(self.names) == block


def dense(model: nn.Module, ids: torch.Tensor) -> NDArray[np.float64]:
    """The Hessian of the mean over all tokens, row by row.

    torch.func.hessian is wrong here: under vmap the second derivative of layer_norm is.
    """
    parameters = list(model.parameters())
    logits = model(ids).logits[:, :-1]
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    gradient = torch.cat([
        one.flatten() for one in torch.autograd.grad(loss, parameters, create_graph=True)
    ])
    rows = []
    for entry in gradient:
        row = torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([one.flatten() for one in row]))
    found: NDArray[np.float64] = torch.stack(rows).numpy()
    assert np.allclose(found, found.T, rtol=0, atol=1e-12)
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    pytest.importorskip("transformers")
    from hessdist.workload.huggingface import huggingface

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "checkpoints").mkdir()
    (folder / "job.toml").write_text(JOB, encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 5, (24, 4), generator=generator)
    np.save(folder / "ids.npy", ids.flatten().numpy())
    job, text = load_job(folder / "job.toml", [])
    model = huggingface(**job.model.arguments).double().eval()
    hessians = {}
    for step in STEPS:
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.add_(0.5 * noise)
        torch.save(model.state_dict(), folder / "checkpoints" / f"step-{step:08d}.pt")
        hessians[step] = dense(model, ids)
    with pytest.MonkeyPatch.context() as patch, Console(enabled=False) as console:
        patch.chdir(folder)
        sweep(job, text, Ranks(), console)
        study(job, text, Ranks(), console)
    names = [name for name, p in model.named_parameters() for _ in range(p.numel())]
    places = by_depth_and_kind(dict.fromkeys(names)).items()
    block_of = {name: place.name for place, own in places for name in own}
    return Tiny(folder, [block_of[name] for name in names], hessians, model, ids)


def test_blocks_against_dense_ones(tiny: Tiny) -> None:
    measured = tiny.measured
    assert len(tiny.names) == 280
    assert list(measured["block"]) == BLOCKS
    assert measured["converged_largest"].all()
    assert measured["converged_smallest"].all()
    for row, step in enumerate(STEPS):
        for column, block in enumerate(BLOCKS):
            chosen = tiny.of(block)
            assert measured["block_parameters"][row, column] == chosen.sum()
            expected = np.linalg.eigvalsh(tiny.hessians[step][np.ix_(chosen, chosen)])
            largest, smallest = (
                measured[f"eigenvalues_{end}"][row, column] for end in ("largest", "smallest")
            )
            assert largest == pytest.approx(expected[::-1][:2], abs=1e-8)
            assert smallest == pytest.approx(expected[:2], abs=1e-8)


def test_the_distance_of_the_blocks_from_the_whole(tiny: Tiny) -> None:
    measured, run = tiny.measured, hessdist.open_run(tiny.folder / "results" / "run.h5")
    names = np.array(tiny.names)
    for row, step in enumerate(STEPS):
        whole = tiny.hessians[step]
        blocks = np.where(names[:, None] == names, whole, 0)
        upper, lower = np.linalg.eigvalsh(blocks)[[-1, 0]]
        most, least = np.linalg.eigvalsh(whole)[[-1, 0]]
        assert measured["block_diagonal_ratio_largest"][row] == pytest.approx(upper / most, 1e-8)
        assert measured["block_diagonal_ratio_smallest"][row] == pytest.approx(lower / least, 1e-8)
        for end in ("largest", "smallest"):
            v = run[step].eigenvector(end, 1).astype(np.float64)
            share = np.linalg.norm(whole @ v - blocks @ v) / np.linalg.norm(whole @ v)
            assert 0.05 < share < 2
            assert measured[f"off_diagonal_share_{end}"][row] == pytest.approx(share, 1e-8)


NET = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.ln, self.mlp = nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3)

    def forward(self, x):
        return x + self.mlp(torch.tanh(self.attn(self.ln(x))))

class Net(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__()
        self.h = nn.Sequential(Layer(), Layer())
        self.head = nn.Linear(3, 2)

def samples():
    inputs = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    return TensorDataset(inputs.double(), (inputs[:, 0] > inputs[:, 1] ** 2).long())
"""
NET_JOB = """
name = "net"
model.factory = "nets:Net"
data.dataset = "nets:samples"
checkpoints.directory = "checkpoints"
spectrum = { largest = 2, smallest = 1, tolerance = 1e-9 }
compute.dtype = "float64"
output.path = "results/run.h5"
study.blocks = { by = "depth_and_kind", largest = 2, smallest = 2 }
training = { steps = 5, checkpoint_steps = [5] }
"""


def test_two_ranks_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """A network without transformers, which takes each process seconds to import."""
    (tmp_path / "nets.py").write_text(NET, encoding="utf-8")
    (tmp_path / "job.toml").write_text(NET_JOB, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    job, text = load_job(Path("job.toml"), [])
    (tmp_path / "checkpoints").mkdir()
    torch.save(build_model("nets:Net", {}).state_dict(), "checkpoints/step-00000005.pt")
    with Console(enabled=False) as console:
        sweep(job, text, Ranks(), console)
        study(job, text, Ranks(), console)
    alone = hessdist.open_run("results/run.h5").studies["blocks"]
    for unit in Path("results/run.checkpoints").glob("study-blocks.*"):
        unit.unlink()
    done = run("study", "job.toml", ranks=2)
    assert done.returncode == 0, done.stderr
    both = hessdist.open_run("results/run.h5").studies["blocks"]
    ratio = both["block_diagonal_ratio_largest"][0]
    expected = f"the largest eigenvalue of the diagonal blocks is {ratio:.3g} of the whole's"
    assert expected in done.stdout
    assert "output" in list(both["block_kind"][0])
    for name, values in alone.items():
        if name.startswith(("eigenvalues", "block_diagonal", "off_diagonal")):
            assert both[name] == pytest.approx(values, rel=1e-9, abs=1e-9), name


def test_patterns_and_tied_names_in_python(tiny: Tiny) -> None:
    options: dict[str, Any] = {"largest": 1, "smallest": 1, "tolerance": 1e-9}
    for layers, blocks in (
        (["transformer.h.*.attn", "lm_head"], ["0 attention", "1 attention"]),
        (["**.mlp", "**.ln_?"], ["0 mlp", "1 mlp", "0 norms", "1 norms", "norms"]),
    ):
        found = hessdist.extreme_eigenpairs(
            tiny.model, hessdist.losses.causal_lm(), list(tiny.ids), layers=layers, **options
        )
        chosen = np.isin(tiny.names, blocks)
        if "lm_head" in layers:
            chosen[: 5 * 4] = True  # the embedding, which is the output's matrix
        expected = np.linalg.eigvalsh(tiny.hessians[STEPS[-1]][np.ix_(chosen, chosen)])
        assert found.eigenvalues_largest == pytest.approx(expected[-1:], abs=1e-8)
        assert found.eigenvalues_smallest == pytest.approx(expected[:1], abs=1e-8)


def test_blocks_of_a_study_by_patterns(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny.folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    blocks = '[["transformer.h.*.attn"], ["lm_head", "**.wpe"]]'
    changes = (f"blocks={blocks}", "by=layer", "steps=[10]")
    job, text = load_job(Path("job.toml"), [f"study.blocks.{change}" for change in changes])
    with Console(enabled=False) as console:
        study(job, text, Ranks(), console, overwrite=True)
    measured = hessdist.open_run("results/run.h5").studies["blocks"]
    assert list(measured["step"]) == [10]
    found = {str(block): i for i, block in enumerate(measured["block"])}
    for label, names in (
        ("transformer.h.*.attn", ["0 attention", "1 attention"]),
        ("lm_head + **.wpe", ["embeddings"]),
    ):
        chosen = np.isin(tiny.names, names)
        expected = np.linalg.eigvalsh(tiny.hessians[10][np.ix_(chosen, chosen)])
        largest = measured["eigenvalues_largest"][0, found[label]]
        assert largest == pytest.approx(expected[::-1][:2], abs=1e-8)


# -- what is shown ---------------------------------------------------------------------------


def test_the_figure(tiny: Tiny) -> None:
    measured = tiny.measured
    figures = dict(figures_of({"blocks": measured}, "gpt"))
    assert [name for name in figures if "heat" in name] == [
        "block-heat-step-0", "block-heat-step-10",
    ]  # fmt: skip
    axes = figures["block-heat-step-10"].axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["outside", "0", "1"]
    kinds = ["embeddings", "attention", "mlp", "norms"]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == kinds
    for one, end in zip(axes, ("largest", "smallest"), strict=True):
        values = measured[f"eigenvalues_{end}"][1, :, 0]
        drawn = one.images[0].get_array().filled(np.nan)
        assert drawn[1, 1] == values[BLOCKS.index("0 attention")]
        assert drawn[0, 3] == values[BLOCKS.index("norms")]
        assert np.isnan(drawn[0, 1])
        assert f"{values[BLOCKS.index('1 mlp')]:.3g}" in [text.get_text() for text in one.texts]
        ratio = measured[f"block_diagonal_ratio_{end}"][1]
        assert f"λ(D) / λ(H) = {ratio:.3g}" in one.get_title("left")


def test_the_table(tiny: Tiny) -> None:
    measured = tiny.measured
    largest, smallest, distances = _tables(run_of({"blocks": measured}))
    for table, expected in ((largest, "outside 0 1"), (smallest, "outside 0 1")):
        assert " ".join(map(str, table.columns[0].cells)) == expected
    assert [*map(str, distances.columns[0].cells)] == ["0", "0", "10", "10"]
    assert [str(column.header) for column in largest.columns][1:3] == ["embeddings", "attention"]
    value = measured["eigenvalues_largest"][1, BLOCKS.index("1 attention"), 0]
    assert str(list(largest.columns[2].cells)[2]) == f"{value:.3g}"
    ratios = [measured[f"block_diagonal_ratio_{end}"] for end in ("largest", "smallest")]
    assert [*map(str, distances.columns[3].cells)] == [
        f"{ratios[e][s]:.3g}" for s in (0, 1) for e in (0, 1)
    ]


def _tables(run: Any) -> list[Any]:
    return list(registry()["blocks"].tables_of(run))


def test_the_page(tiny: Tiny) -> None:
    measured = tiny.measured
    (view,) = registry()["blocks"].views_of(run_of({"blocks": measured}))
    assert view.lists == [["largest eigenvalue", "smallest eigenvalue"]]
    assert view.steps == list(STEPS)
    (heat,), frames = view.figures[1].data, view.figures[1].frames
    assert heat["x"] == ["embeddings", "attention", "mlp", "norms"]
    texts = [frame["data"][0]["text"] for frame in frames]
    values = measured["eigenvalues_smallest"][:, BLOCKS.index("1 mlp"), 0]
    assert [text[2][2] for text in texts] == [f"{value:.3g}" for value in values]


def test_what_did_not_converge_is_marked(tiny: Tiny) -> None:
    variables = dict(tiny.measured.variables)
    old = variables["converged_largest"]
    values = old.values.copy()
    values[1, BLOCKS.index("1 mlp"), 0] = False
    variables["converged_largest"] = Variable(old.dimensions, values, old.long_name)
    largest = _tables(run_of({"blocks": Measurements(variables)}))[0]
    assert str(list(largest.columns[3].cells)[2]).endswith(" ×")


def test_blocks_of_layers_are_shown_as_before(tiny: Tiny) -> None:
    before = ("block_depth", "block_kind", "block_diagonal", "off_diagonal")
    variables = tiny.measured.variables
    kept = {name: variables[name] for name in variables if not name.startswith(before)}
    run = run_of({"blocks": Measurements(kept)})
    names = [name for name, _ in registry()["blocks"].figures_of(run, "t")]
    assert names == [f"{what}-step-{s}" for s in STEPS for what in ("layer-shares", "blocks")]
    assert not _tables(run)
    assert not list(registry()["blocks"].views_of(run))


# -- the job ---------------------------------------------------------------------------------


def test_results_of_jobs_without_the_key_stay_current() -> None:
    hashed = settings_hash(registry()["blocks"], Job.model_construct(), _section(), ())
    assert hashed == "0d7249b27af3"  # as it was before there was a key `by`
    other = settings_hash(registry()["blocks"], Job.model_construct(), _section(by=True), ())
    assert other != hashed


def _section(by: bool = False) -> BlocksSection:
    return BlocksSection(largest=2, smallest=1, by="depth_and_kind" if by else "layer")


def test_blocks_and_by_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB + 'blocks = [["lm_head"]]\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"blocks are given, and by is 'depth_and_kind'"):
        load_job(path, [])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("transformer.wpe.weight", "embeddings"),
        ("transformer.h.3.attn.c_attn.weight", "3 attention"),
        ("transformer.h.3.ln_1.bias", "3 norms"),
        ("transformer.ln_f.bias", "norms"),
        ("lm_head.weight", "output"),
        ("model.embed_tokens.weight", "embeddings"),
        ("model.layers.11.self_attn.q_proj.weight", "11 attention"),
        ("model.layers.11.self_attn.q_norm.weight", "11 norms"),
        ("model.layers.11.post_attention_layernorm.weight", "11 norms"),
        ("model.layers.0.mlp.experts.5.w1.weight", "0 mlp"),
        ("model.layers.0.block_sparse_moe.gate.weight", "0 mlp"),
        ("bert.encoder.layer.3.attention.output.dense.weight", "3 attention"),
        ("bert.encoder.layer.3.output.dense.weight", "3 mlp"),
        ("bert.encoder.layer.3.output.LayerNorm.weight", "3 norms"),
        ("bert.embeddings.word_embeddings.weight", "embeddings"),
        ("cls.predictions.bias", "output"),
        ("decoder.layers.0.linear1.weight", "0 mlp"),
        ("decoder.layers.0.multihead_attn.in_proj_weight", "0 attention"),
        ("encoder.layers.encoder_layer_7.mlp.0.weight", "7 mlp"),
        ("heads.head.weight", "output"),
        ("blocks.2.ls1.gamma", "2 ls1"),
        ("cls_token", "embeddings"),
        ("base_model.model.model.layers.1.self_attn.q_proj.lora_A.default.weight", "1 attention"),
        ("gpt_neox.embed_in.weight embed_out.weight", "embeddings output"),
        ("layers.0.mixer.A_log layers.0.mixer.in_proj.weight", "0 mixer 0 in_proj"),
        ("conv1.weight fc1.weight fc1.bias", "conv1 fc1"),
        ("0.weight 0.bias 2.weight", "0 layer 2 layer"),
        (
            "encoder.block.0.layer.0.SelfAttention.q.weight "
            "decoder.block.0.layer.1.layer_norm.weight",
            "encoder.block.0 attention decoder.block.0 norms",
        ),
    ],
)  # fmt: skip
def test_depth_and_kind(names: str, expected: str) -> None:
    places = by_depth_and_kind(names.split())
    assert " ".join(place.name for place in places) == expected
    assert [name for own in places.values() for name in own] == names.split()
