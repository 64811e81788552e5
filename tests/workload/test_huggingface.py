"""Runs of transformers by a job file alone: checkpoints, text, adapters, classifiers, refusals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from language_models import Dense, Sequences, causal, of_model
from torch import Tensor, nn

import hessdist
from hessdist.config.loader import parse_job
from hessdist.errors import HessdistError
from hessdist.parallel.ranks import Ranks
from hessdist.service.console import Console
from hessdist.service.sweep import sweep
from hessdist.service.train import train_job
from hessdist.service.workload import workload_of
from hessdist.workload.huggingface import huggingface

transformers = pytest.importorskip("transformers")

GPT2 = {
    "vocab_size": 8, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 2, "n_inner": 6,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
WORDS = ["[UNK]", "to", "be", "or", "not", "that", "is", "the"]
TEXT = "to be or not to be that is the question or not that is to be the not or is"

JOB = """
[model]
factory = "huggingface"
arguments = {model}
[loss]
factory = "{loss}"
[data]
dataset = "{dataset}"
arguments = {data}
[training]
optimizer = "adam"
learning_rate = 0.01
batch_size = 4
steps = 4
checkpoint_steps = [0, 4]
[checkpoints]
directory = "{checkpoints}"
[spectrum]
operator = "{operator}"
fisher = "{fisher}"
largest = 3
smallest = {smallest}
tolerance = 1e-7
[compute]
dtype = "float64"
batch_size = 3
[output]
path = "run.h5"
"""


def job_text(**given: str) -> str:
    defaults = {
        "loss": "causal_lm", "dataset": "tokens", "checkpoints": "runs/gpt", "data": "{ }",
        "operator": "hessian", "fisher": "sequences", "smallest": "2",
    }  # fmt: skip
    return JOB.format(**{**defaults, **given})


def solved(text: str, train: bool = False) -> hessdist.Run:
    """Do a job in this process."""
    job, text = parse_job(text, "job.toml")
    if train:
        train_job(job, Console(enabled=False))
    sweep(job, text, Ranks(), Console(enabled=False))
    return hessdist.open_run(job.output.path)


def gpt2(seed: int) -> Any:
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**GPT2, attn_implementation="eager")
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def dense_eigenvalues(model: nn.Module, data: Sequences, which: str = "hessian") -> Any:
    exact = Dense(model.double().eval(), data, of_model)
    return np.linalg.eigvalsh(exact.matrices()[which].numpy() / len(exact.labels))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def run_folder(folder: Path) -> dict[int, Any]:
    """A run of a trainer: one file, and shards in 16 bits, with tied weights; its tokenizer; text.

    Returns:
        The models by step, with the values that the files have.
    """
    tokenizers = pytest.importorskip("tokenizers")
    first, second = gpt2(1), gpt2(2).to(torch.bfloat16)
    first.save_pretrained("runs/gpt/checkpoint-10")
    second.save_pretrained("runs/gpt/checkpoint-20", max_shard_size=400)
    assert len(list(Path("runs/gpt/checkpoint-20").glob("*.safetensors"))) > 1
    words = tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    whole.save_pretrained("runs/gpt/checkpoint-20")
    Path("corpus").mkdir()
    half = TEXT.index("that")
    Path("corpus/a.txt").write_text(TEXT[:half], encoding="utf-8")
    Path("corpus/b.txt").write_text(TEXT[half:], encoding="utf-8")
    return {10: first, 20: second.float()}


def words_in(text: str) -> Tensor:
    numbers = [WORDS.index(word) if word in WORDS else 0 for word in text.split()]
    return torch.tensor(numbers)


RUN = job_text(
    model='{ config = "runs/gpt/checkpoint-10" }',
    data='{ path = "corpus/*.txt", length = 5, tokenizer = "runs/gpt/checkpoint-20" }',
)


def test_a_job_file_and_nothing_else(run_folder: dict[int, Any], run: Run) -> None:
    Path("job.toml").write_text(RUN, encoding="utf-8")
    done = run("spectrum", "job.toml")
    assert done.returncode == 0, done.stderr
    found = hessdist.open_run("run.h5")
    assert found.steps.tolist() == [10, 20]
    rows = [row for row in words_in(TEXT).split(5) if len(row) == 5]
    for step, model in run_folder.items():
        right = dense_eigenvalues(model, causal(rows))
        assert found[step].eigenvalues_largest == pytest.approx(right[::-1][:3], rel=1e-8)
        assert found[step].eigenvalues_smallest == pytest.approx(right[:2], rel=1e-8)


def test_documents_with_padding_and_the_fisher_matrix_of_tokens(
    run_folder: dict[int, Any],
) -> None:
    data = '{ path = "corpus/*.txt", length = 8, tokenizer = "runs/gpt/checkpoint-20", packed = false }'  # noqa: E501
    model = '{ config = "runs/gpt/checkpoint-10" }'
    text = job_text(
        model=model, data=data, operator="empirical_fisher", fisher="tokens", smallest="0"
    )
    found = solved(text)
    half = TEXT.index("that")
    rows = [words_in(TEXT[:half]), words_in(TEXT[half:])[:8]]
    assert len(rows[0]) < 8
    for step, one in run_folder.items():
        right = dense_eigenvalues(one, causal(rows), "tokens")[::-1][:3]
        assert found[step].eigenvalues_largest == pytest.approx(right, rel=1e-8)


def test_training_and_spectrum_of_bytes(folder: Path) -> None:
    Path("corpus.txt").write_text("abcabcabdabcabcabd" * 2, encoding="utf-8")
    config = {**GPT2, "vocab_size": 128, "n_embd": 2, "n_head": 1}
    fields = ", ".join(f"{name} = {value}" for name, value in config.items())
    found = solved(
        job_text(
            model=f'{{ config = {{ model_type = "gpt2", {fields} }} }}',
            data='{ path = "corpus.txt", length = 6 }',
            checkpoints="checkpoints",
        ),
        train=True,
    )
    assert found.steps.tolist() == [0, 4]
    assert found.loss[0] == pytest.approx(np.log(128), rel=1e-2)
    assert found.loss[1] < found.loss[0]
    assert found.converged_largest.all()


def test_an_adapter_on_a_frozen_base(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    gpt2(1).save_pretrained("base")
    settings = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    trained = peft.get_peft_model(gpt2(1), settings)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn(parameter.shape))
    trained.save_pretrained("runs/lora/checkpoint-10")
    np.save("ids.npy", np.arange(40) ** 2 % 8)
    found = solved(
        job_text(
            model='{ config = "base", adapter = "runs/lora/checkpoint-10" }',
            data='{ path = "ids.npy", length = 8 }',
            checkpoints="runs/lora",
        )
    )
    rows = torch.from_numpy(np.arange(40) ** 2 % 8).split(8)
    right = dense_eigenvalues(trained, causal(rows))
    assert found.steps.tolist() == [10]
    assert len(right) == 2 * 4 + 2 * 12
    assert found[10].eigenvalues_largest == pytest.approx(right[::-1][:3], rel=1e-8)
    assert found[10].eigenvalues_smallest == pytest.approx(right[:2], rel=1e-7)


DATA = """
import torch
labels = torch.arange(9) % 3

def images():
    g = torch.Generator().manual_seed(0)
    return list(zip(torch.rand(9, 1, 4, 4, generator=g), labels))

def sentences():
    g = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(1, 7, (9, 5), generator=g), torch.ones(9, 5, dtype=torch.long)
    mask[::2, 3:] = 0
    return [({"input_ids": i, "attention_mask": m}, y) for i, m, y in zip(ids, mask, labels)]
"""


@pytest.mark.parametrize(
    ("task", "samples", "fields"),
    [
        ("image-classification", "images", {
            "model_type": "vit", "hidden_size": 4, "num_hidden_layers": 1, "image_size": 4,
            "num_attention_heads": 2, "intermediate_size": 4, "patch_size": 2, "num_channels": 1,
        }),
        ("sequence-classification", "sentences", {
            "model_type": "bert", "vocab_size": 7, "hidden_size": 4, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 4, "max_position_embeddings": 6,
            "type_vocab_size": 1,
        }),
    ],
)  # fmt: skip
def test_classifiers(folder: Path, task: str, samples: str, fields: dict[str, Any]) -> None:
    Path("classified.py").write_text(DATA, encoding="utf-8")
    sys.modules.pop("classified", None)
    torch.manual_seed(0)
    model: Any = huggingface({**fields, "num_labels": 3}, task=task)
    model.save_pretrained("runs/classifier/checkpoint-5")
    given = f'{{ config = "runs/classifier/checkpoint-5", task = "{task}" }}'
    text = job_text(
        model=given, loss="cross_entropy", dataset=f"classified:{samples}",
        checkpoints="runs/classifier",
    )  # fmt: skip
    found = solved(text)
    workload = workload_of(parse_job(text, "job.toml")[0])
    model = model.double().eval()
    pairs = [workload.dataset[i] for i in range(9)]
    losses = []
    for inputs, label in pairs:
        options = inputs if isinstance(inputs, dict) else {"pixel_values": inputs.double()}
        z = type(model).forward(model, **{name: one[None] for name, one in options.items()}).logits
        losses.append(nn.functional.cross_entropy(z, label[None]))
    exact = Dense.__new__(Dense)
    exact.parameters = list(model.parameters())
    mean = torch.stack(losses).mean()
    gradient = exact.jacobian(mean[None], create_graph=True)[0]
    right = np.linalg.eigvalsh(exact.jacobian(gradient).numpy())
    assert found[5].eigenvalues_largest == pytest.approx(right[::-1][:3], rel=1e-7)
    assert found.loss[0] == pytest.approx(float(mean.detach()), rel=1e-9)


# -- refusals --------------------------------------------------------------------------------


def refusal(make: Callable[[], object]) -> str:
    with pytest.raises(HessdistError) as caught:
        make()
    line = str(caught.value)
    assert line.isprintable()
    assert caught.value.remedy
    assert caught.value.exit_status == 2
    return line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"config": "runs/none/checkpoint-1"}, "no configuration"),
        ({"config": "."}, "config.json"),
        ({"config": {}}, "no configuration"),
        ({"config": {"model_type": "nothing"}}, "no configuration"),
        ({"config": {"model_type": "gpt2", "n_embd": "wide"}}, "n_embd"),
        ({"config": 3}, "no configuration"),
        ({"config": {"model_type": "gpt2", "n_embd": 5, "n_head": 2}}, "cannot build gpt2"),
        ({"config": {"model_type": "vit"}}, "cannot build vit for causal-lm"),
        ({"config": {"model_type": "gpt2"}, "task": "chess"}, "the task 'chess' is not known"),
        ({"config": {"model_type": "gpt2"}, "pretrained": True}, "no weights"),
        ({"config": {"model_type": "gpt2", "quantization_config": {"quant_method": "awq"}}},
         "quantised"),
        ({"config": "tiny", "adapter": "lora"}, "no adapter"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused(folder: Path, arguments: Any, line: str) -> None:
    if arguments["config"] == "tiny":
        gpt2(1).save_pretrained("tiny")
    assert line in refusal(lambda: huggingface(**arguments))


def test_a_name_of_the_hub_without_a_network_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import socket

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", fail)
    monkeypatch.setattr("hessdist.workload.huggingface.getproxies", dict)
    asked: list[bool] = []

    def never(name: str, *, local_files_only: bool = False, **_: Any) -> None:
        asked.append(local_files_only)
        raise OSError("not in the cache")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", never)
    assert "not in the cache" in refusal(lambda: huggingface("somebody/model"))
    assert asked == [True]


@pytest.mark.parametrize("missing", ["transformers", "peft"])
def test_a_missing_library_says_how_it_is_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    gpt2(1).save_pretrained("base")
    monkeypatch.setitem(sys.modules, missing, None)
    line = refusal(lambda: huggingface("base", adapter="base"))
    assert f"pip install {missing}" in line


def test_the_fisher_matrix_of_tokens_needs_tokens() -> None:
    text = job_text(model="{ }", loss="cross_entropy", fisher="tokens", dataset="digits")
    text = text.replace('"huggingface"', '"lenet5"')
    line = refusal(lambda: workload_of(parse_job(text, "job.toml")[0]))
    assert "the loss 'cross_entropy' has no tokens" in line


def test_the_key_fisher_changes_fingerprints_of_tokens_alone() -> None:
    def fingerprint(text: str) -> str:
        return parse_job(text, "job.toml")[0].fingerprint()

    plain = job_text(model="{ }").replace('fisher = "sequences"\n', "")
    assert "spectrum.fisher" not in parse_job(plain, "job.toml")[0].determining()
    assert fingerprint(job_text(model="{ }")) == fingerprint(plain)
    assert fingerprint(job_text(model="{ }", fisher="tokens")) != fingerprint(plain)
