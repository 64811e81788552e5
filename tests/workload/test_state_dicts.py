"""What a checkpoint holds, and the model that it is for."""

from __future__ import annotations

import random
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hessdist.errors import CheckpointError
from hessdist.workload.checkpoints import load_into, read_whole, write_checkpoint

State = Mapping[str, Any]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def state_of(seed: int, make: Callable[[], nn.Module] = net) -> OrderedDict[str, Tensor]:
    torch.manual_seed(seed)
    return make().state_dict()  # type: ignore[return-value]


def before(prefix: str, state: State) -> OrderedDict[str, Any]:
    longer = OrderedDict((f"{prefix}{name}", tensor) for name, tensor in state.items())
    if hasattr(state, "_metadata"):
        longer._metadata = state._metadata  # type: ignore[attr-defined]
    return longer


A, B = state_of(1), state_of(2)


def filled(content: State, make: Callable[[], nn.Module] = net, **place: str) -> nn.Module:
    torch.manual_seed(3)
    model = make()
    load_into(model, content, Path("step-7.pt"), **place)
    return model


def which(content: State, make: Callable[[], nn.Module] = net, **place: str) -> str:
    """Whether a model is filled with A or B, all of it."""
    loaded = list(filled(content, make, **place).state_dict().values())
    for name, state in (("A", A), ("B", B)):
        if all(torch.equal(one, other) for one, other in zip(loaded, state.values(), strict=True)):
            return name
    return "neither"


def refusal(content: State, make: Callable[[], nn.Module] = net, **place: str) -> str:
    """The line by which a checkpoint is refused; the model stays as it is."""
    torch.manual_seed(3)
    model = make()
    there = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_into(model, content, Path("step-7.pt"), **place)
    assert all(torch.equal(there[name], tensor) for name, tensor in model.state_dict().items())
    assert "step-7.pt" in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


# -- nestings and prefixes -------------------------------------------------------------------

PREFIXES = [
    *("module.", "_orig_mod.", "model.", "net.", "network.", "_orig_mod.module.", "module.model."),
    *("module._orig_mod.", "model._orig_mod.", "_fsdp_wrapped_module.", "ema_model.", "backbone."),
    "ema.module.",
]
KEYS = ["state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "ema"]


@pytest.mark.parametrize("seed", range(60))
def test_one_state_is_found_under_any_keys_and_prefixes(seed: int) -> None:
    draw = random.Random(seed)
    content: Any = before("".join(draw.sample(PREFIXES, draw.randint(0, 2))), A)
    if draw.random() < 0.3:
        content = OrderedDict(n_averaged=torch.tensor(4), **before("module.", content))
    for key in draw.sample([*KEYS, "anything", "a.b"], draw.randint(0, 3)):
        content = {"epoch": 3, key: content, "optimizer": {"state": {0: torch.ones(2)}, "lr": 0.1}}
    assert which(content) == "A"


@pytest.mark.parametrize(
    "content",
    [
        {"model": A, "ema": B},
        {"ema": B, "model": A},
        {"model": {"state_dict": A}, "model_ema": B, "optimizer": {}},
        {"state_dict": A, "state_dict_ema": B},
        {"generator": A, "generator_ema": B},
        {"model": A, "anything": B},
        {"state_dict": {**before("model.", A), **before("ema_model.", B)}},
        {**before("net.", A), **before("swa_net.", B), "criterion.weight": torch.ones(3)},
        {**before("model.", A), "train_acc.total": torch.ones(3), "loss_fn.w": torch.ones(2)},
        {"model": A, "ema": {"step": torch.tensor(3), **before("ema_model.", B)}},
    ],
)
def test_averages_and_losses_beside_the_state_are_told_apart_by_name(content: State) -> None:
    assert which(content) == "A"


@pytest.mark.parametrize(
    ("content", "place", "key"),
    [
        ({"student": A, "teacher": B}, {"key": "teacher"}, "key"),
        ({"net": A, "model": B}, {"key": "model"}, "key"),
        ({"a": {"b": A}, "c": {"b": B}}, {"key": "c.b"}, "key"),
        ({"a": {"b": A}, "c": {"b": B}}, {"key": "c"}, "key"),
        ({"state_dict": A, "current_model_state": B}, {"key": "current_model_state"}, "key"),
        ({**before("gen.", A), **before("dis.", B)}, {"prefix": "dis."}, "prefix"),
        ({**before("gen.", A), **before("dis.", B)}, {"prefix": "dis"}, "prefix"),
        ({"x": {**before("q.", A), **before("k.", B)}}, {"key": "x", "prefix": "k"}, "prefix"),
        ({**before("module.", A), **B}, {"prefix": ""}, "prefix"),
        ({**before("module.", B), **A}, {"prefix": "module."}, "prefix"),
    ],
)
def test_two_states_that_fit_are_refused_and_the_job_tells_which(
    content: State, place: dict[str, str], key: str
) -> None:
    line = refusal(content)
    assert "two states that fit the model and differ" in line
    assert f"checkpoints.{key}" in line
    assert place[key].split(".")[0] in line
    assert which(content, **place) == "B"


def test_key_and_prefix_win_over_what_would_be_guessed() -> None:
    assert which({"model": A, "ema": B}, key="ema") == "B"
    assert which({**before("model.", A), **before("ema.", B)}, prefix="ema") == "B"


def test_two_states_that_are_equal_are_one() -> None:
    copy = OrderedDict((name, tensor.clone()) for name, tensor in A.items())
    assert which({"first": A, "second": copy}) == "A"
    assert which({**before("module.", A), **copy}) == "A"


@pytest.mark.parametrize(
    ("content", "place", "says"),
    [
        (
            {"model": A},
            {"key": "ema"},
            "no tensors under checkpoints.key 'ema'; it has under 'mo",
        ),
        (A, {"prefix": "net"}, "no names that begin with checkpoints.prefix"),
        ({**before("model.", A), "head.weight": torch.ones(2)}, {}, "leaves out head.weight"),
        (
            {**before("trunk.", A), "head.weight": torch.ones(2)},
            {},
            "checkpoints.prefix = 'trunk.'",
        ),
        ({**before("model.", A), "model.7.w": torch.ones(2)}, {}, "not in the model: 7.w"),
        ({**A, "extra": torch.ones(2)}, {}, "not in the model: extra; it has 10 tensors (0.wei"),
        ({name: A[name] for name in A if name != "3.bias"}, {}, "missing: 3.bias"),
        ({"model": {name: A[name] for name in A if name != "3.bias"}}, {}, "under key 'model'"),
        ({**A, "3.bias": torch.ones(4)}, {}, "3.bias is (4,) there and (3,) in the model"),
        ({**A, "0.weight": {"x": 1}}, {}, "missing: 0.weight"),
        ({**A, "\x1b[31m\n": torch.ones(1)}, {}, "\\x1b[31m"),
        ({}, {}, "missing: 0.weight"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_there(
    content: State, place: dict[str, str], says: str
) -> None:
    assert says in refusal(content, **place)


def test_what_the_job_tells_to_leave_out_is_left_out() -> None:
    content = {**before("model.", A), "head.weight": torch.ones(2)}
    assert which(content, prefix="model.") == "A"


def test_a_checkpoint_that_holds_itself_ends() -> None:
    content: dict[str, Any] = {"model": A}
    content["again"] = {"more": content}
    assert which(content) == "A"


# -- models that have prefixes themselves ----------------------------------------------------


class Inside(nn.Module):
    """A network under a name of its own."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "parallel": lambda: nn.DataParallel(net()),
    "compiled": lambda: torch.compile(net()),  # type: ignore[return-value]
    "parallel and compiled": lambda: torch.compile(nn.DataParallel(net())),  # type: ignore[return-value]
    "module": lambda: Inside("module", net()),
    "model": lambda: Inside("model", net()),
    "compiled inside": lambda: Inside("body", torch.compile(net())),  # type: ignore[arg-type]
    "encoder": lambda: Inside("encoder", net()),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_a_prefix_takes_names_with_and_without_it(name: str, tmp_path: Path) -> None:
    make = MODELS[name]
    for content in (A, before("module.", A), {"state_dict": before("_orig_mod.", A)}):
        assert which(content, make) == "A"
    own = make()
    path = write_checkpoint(tmp_path, 1, own)
    again = filled(read_whole(path), make).state_dict()
    assert list(again) == list(own.state_dict())
    assert all(torch.equal(again[name], tensor) for name, tensor in own.state_dict().items())


def test_another_part_of_a_network_is_not_taken_for_this_one() -> None:
    line = refusal(before("decoder.", A), MODELS["encoder"])
    assert "missing: encoder.0.weight" in line
    assert "decoder.0.weight" in line


def test_states_of_parts_side_by_side_are_put_together() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(4, 2), nn.Linear(2, 4)

    there = Pair()
    parts = {name: part.state_dict() for name, part in there.named_children()}
    model = filled({**parts, "optimizer": {"m": torch.ones(3)}}, Pair)
    assert torch.equal(model.decoder.weight, there.decoder.weight)
    assert torch.equal(model.encoder.bias, there.encoder.bias)
    assert "missing" in refusal({"encoder": parts["encoder"], "other": parts["decoder"]}, Pair)


# -- what strict loading takes ---------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "net."])
def test_batch_norm_without_its_count_is_taken(prefix: str) -> None:
    state = {f"{prefix}{name}": A[name] for name in A if "num_batches" not in name}
    assert torch.equal(filled({"model": state}).state_dict()["1.running_var"], A["1.running_var"])
    with_ema = {"model": state, "ema": B}
    assert torch.equal(filled(with_ema).state_dict()["0.weight"], A["0.weight"])
    # A state of today's version without it is damaged, as strict loading says too.
    modern = before("", A)
    del modern["1.num_batches_tracked"]
    assert "missing: 1.num_batches_tracked" in refusal(modern)


@pytest.mark.parametrize("wrap", [dict, lambda s: before("module.", s), lambda s: {"model": s}])
@pytest.mark.parametrize("parallel", [False, True])
def test_names_of_the_older_weight_norm_are_taken(
    wrap: Callable[[State], State], parallel: bool
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        older = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 5)))

    def newer() -> nn.Module:
        inner = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)))
        return nn.DataParallel(inner) if parallel else inner

    model = filled(wrap(older.state_dict()), newer)
    assert torch.allclose(
        next(model.modules()).get_submodule("module.0" if parallel else "0").weight, older[0].weight
    )
    lacking = {
        name: tensor for name, tensor in older.state_dict().items() if "weight_g" not in name
    }
    assert "another model" in refusal(lacking, newer)


class Tied(nn.Module):
    """One tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


def test_tied_tensors_may_be_saved_once_and_must_not_differ() -> None:
    one, other = torch.ones(6, 4), torch.zeros(6, 4)
    for state in ({"embed.weight": one}, {"head.weight": one}):
        for content in (state, before("module.", state), {"model": {**state}}):
            assert bool((filled(content, Tied).embed.weight == 1).all())
    both = {"embed.weight": one, "head.weight": one.clone()}
    assert bool((filled(both, Tied).embed.weight == 1).all())
    line = refusal({"embed.weight": one, "head.weight": other}, Tied)
    assert "two different tensors" in line
    assert "embed.weight and head.weight" in line


class Positions(nn.Module):
    """Buffers that need not be saved, and a mask of minus infinity that is."""

    _keys_to_ignore_on_load_unexpected = (r"inv_freq",)
    _keys_to_ignore_on_load_missing = (r"mask", r"linear\.bias")

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        self.register_buffer("ids", torch.arange(4), persistent=False)


def test_buffers_that_a_model_makes_by_itself_may_be_there_or_not() -> None:
    there = Positions().state_dict()
    for content in (
        there,
        {**there, "ids": torch.arange(4)},
        {**there, "rotary.inv_freq": torch.ones(3)},
        {name: there[name] for name in there if name != "mask"},
    ):
        model = filled(content, Positions)
        assert torch.equal(model.linear.weight, there["linear.weight"])
        assert torch.equal(model.mask, there["mask"])
    assert "not in the model: ids" in refusal({**there, "ids": torch.arange(4) + 1}, Positions)
    assert "not finite: mask" in refusal({**there, "mask": -there["mask"]}, Positions)
    # What is drawn at random is never left as it is.
    lacking = {name: there[name] for name in there if name != "linear.bias"}
    assert "missing: linear.bias" in refusal(lacking, Positions)


class Careless(nn.Module):
    """It leaves out what it does not find, without a word."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Any:  # type: ignore[override]
        return super().load_state_dict(state, strict=False)


def test_a_model_that_leaves_parameters_as_they_were_is_found_out() -> None:
    with pytest.raises(CheckpointError, match=r"leaves b\.weight, b\.bias as they were"):
        filled(before("a.", nn.Linear(2, 2).state_dict()), Careless)


class Counting(nn.Module):
    """State beside its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.count = nn.Linear(2, 2), 3

    def get_extra_state(self) -> Any:
        return {"count": self.count}

    def set_extra_state(self, state: Any) -> None:
        self.count = state["count"]


def test_state_beside_tensors_is_kept(tmp_path: Path) -> None:
    there = Counting()
    there.count = 9
    path = write_checkpoint(tmp_path, 1, there)
    assert filled(read_whole(path), Counting).count == 9
    assert filled(before("module.", there.state_dict()), Counting).count == 9


def test_lazy_modules_are_filled() -> None:
    there = nn.Sequential(nn.Linear(4, 3))
    model = filled(there.state_dict(), lambda: nn.Sequential(nn.LazyLinear(3)))
    assert torch.equal(model[0].weight, there[0].weight)


# -- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.half, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2],
)
@pytest.mark.parametrize("own", [torch.float32, torch.float64])
def test_other_precisions_are_converted_exactly(dtype: torch.dtype, own: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in A.items()}
    model = filled(state, lambda: net().to(own)).state_dict()
    assert all(torch.equal(model[name].double(), state[name].to(own).double()) for name in A)
    assert model["1.num_batches_tracked"].dtype == torch.int64


W = A["0.weight"]
NAN = torch.full((5, 4), torch.nan)


@pytest.mark.filterwarnings("ignore:.*Sparse.*", "ignore:.*quantize.*")
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda: W.to(torch.complex64), "0.weight is complex there and real in the model"),
        (lambda: NAN.to(torch.complex64), "0.weight is complex there"),
        (lambda: W.to_sparse(), "0.weight is sparse"),
        (lambda: W.to_sparse_csr(), "0.weight is sparse"),
        (lambda: W.to("meta"), "0.weight has no values"),
        (lambda: torch.quantize_per_tensor(W, 0.1, 0, torch.qint8), "0.weight is quantised"),
        (lambda: (50 * W).to(torch.int8), "0.weight holds int8 there and float32"),
        (lambda: W > 0, "0.weight holds bool there"),
        (lambda: NAN, "not finite: 0.weight holds NaN"),
        (lambda: NAN.to(torch.float8_e4m3fn), "not finite: 0.weight holds NaN"),
        (lambda: NAN.bfloat16(), "not finite: 0.weight holds NaN"),
        (lambda: 1e300 * W.double().sign(), "not finite: 0.weight holds values beyond float32"),
        (lambda: torch.zeros(1).expand(10**6, 10**6), "is (1000000, 1000000) there"),
    ],
)
def test_what_would_lose_something_is_refused_by_name(
    value: Callable[[], Tensor], says: str
) -> None:
    assert says in refusal({**A, "0.weight": value()})


def test_complex_models_take_complex_values_that_are_finite() -> None:
    def make() -> nn.Module:
        return nn.Linear(2, 2, dtype=torch.complex64)

    state = state_of(1, make)
    assert torch.equal(filled(state, make).weight, state["weight"])
    state["weight"][0, 1] = complex(0, torch.nan)
    assert "not finite: weight" in refusal(state, make)


@pytest.mark.parametrize("count", [torch.tensor(2.5), torch.tensor(torch.nan)])
def test_a_count_that_is_no_whole_number_is_refused(count: Tensor) -> None:
    assert "num_batches_tracked holds float32 that are not" in refusal({
        **A,
        "1.num_batches_tracked": count,
    })


def test_one_number_of_a_list_fills_a_tensor_without_dimensions_and_more_do_not() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

    assert filled({"scale": torch.tensor([3.0])}, Scale).scale.item() == 3
    assert "scale is (2,) there" in refusal({"scale": torch.tensor([3.0, 4.0])}, Scale)


# -- libraries -------------------------------------------------------------------------------


def test_models_of_transformers_are_read_as_they_save_them(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 11, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    transformers.logging.disable_progress_bar()
    for name, make in {
        "GPT-2, tied": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=2)
        ),
        "Mixtral, whose files have other names": lambda: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(
                **small, num_key_value_heads=1, intermediate_size=6, num_local_experts=2
            )
        ),
    }.items():
        torch.manual_seed(1)
        there = make()
        folder = tmp_path / name / "checkpoint-3"
        there.save_pretrained(folder, max_shard_size="1KB")
        for make_own in (make, lambda make=make: make().double()):
            here = filled(read_whole(folder), make_own).state_dict()
            assert all(
                torch.equal(here[key].float(), one) for key, one in there.state_dict().items()
            )


def test_adapters_of_peft_are_read_and_must_be_whole(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def make(rank: int = 2) -> nn.Module:
        torch.manual_seed(0)
        config = peft.LoraConfig(r=rank, target_modules=["0"], modules_to_save=["3"])
        return peft.get_peft_model(net(), config)  # type: ignore[no-any-return]

    there = make()
    with torch.no_grad():
        for parameter in there.parameters():
            parameter += parameter.requires_grad * torch.randn_like(parameter)
    there.save_pretrained(tmp_path)
    saved = dict(read_whole(tmp_path))
    for content in (saved, there.state_dict(), before("module.", there.state_dict())):
        here = filled(content, make).state_dict()
        assert all(torch.equal(here[name], one) for name, one in there.state_dict().items())
    dropped = saved.popitem()
    assert f"missing: {dropped[0]}" in refusal(saved, make)
    assert "not in the model: base_model.model.9" in refusal(
        {**saved, **dict([dropped]), "base_model.model.9.lora_A.weight": torch.ones(1)}, make
    )
    assert "there and" in refusal({**saved, **dict([dropped])}, lambda: make(3))
    assert "let model.factory return peft.get_peft_model" in refusal({**saved, **dict([dropped])})
