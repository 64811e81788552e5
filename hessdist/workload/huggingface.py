"""Models of the transformers library, from a configuration."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from torch import nn

from hessdist.errors import WorkloadError
from hessdist.workload.factories import one_line
from hessdist.workload.optional import import_library

_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}


def huggingface(
    config: str | Mapping[str, Any],
    task: str = "causal-lm",
    pretrained: bool = False,
    adapter: str | None = None,
) -> nn.Module:
    """Build a model of the transformers library, in float32 and with differentiable attention.

    Models of the classification tasks are made to return logits alone, and to take a mapping of
    inputs as well, so that they go with `cross_entropy` and pairs (inputs, label).

    Args:
        config: A folder with `config.json` (such as `checkpoint-300`), a name of the hub, or the
            fields of a configuration, `model_type` among them.
        task: "causal-lm", "masked-lm", "sequence-classification" or "image-classification".
        pretrained: Whether the weights there are loaded as well. Checkpoints need no such weights.
        adapter: A folder with `adapter_config.json` of peft. The base model is frozen, with the
            weights of `config`, and the parameters are those of the adapter.

    Returns:
        The model.

    Raises:
        DependencyError: transformers or peft is missing.
        WorkloadError: The configuration is missing, unknown or quantised, or the task is unknown.
    """
    if task not in _CLASSES:
        raise WorkloadError(f"the task '{task}' is not known", f"use one of {', '.join(_CLASSES)}")
    transformers = import_library("transformers")
    found = _configuration(transformers, config)
    family = getattr(transformers, _CLASSES[task])
    options = {  # other implementations have no second derivative, or none in float64
        "dtype": "float32",
        "attn_implementation": "eager",
        "experts_implementation": "eager",
    }
    try:
        if pretrained or adapter is not None:
            if not isinstance(config, str):
                raise WorkloadError(
                    "a table of fields has no weights", "name a folder, or a model of the hub"
                )
            with _without_bars(transformers):
                model = loaded(family.from_pretrained, config, config=found, **options)
        else:
            model = family.from_config(found, **options)
    except WorkloadError:
        raise
    except Exception as error:  # of any class: the fields of a configuration are the user's
        raise WorkloadError(
            f"transformers cannot build {found.model_type} for {task} ({one_line(error)})",
            "check model.arguments (config, task)",
        ) from error
    model.config.use_cache = False  # of keys and values, which only generation needs
    if task.endswith("classification"):
        model.register_forward_pre_hook(_unpacked, with_kwargs=True)
        model.register_forward_hook(_logits)
    return model if adapter is None else _with_adapter(model, adapter)


@contextmanager
def _without_bars(transformers: ModuleType) -> Iterator[None]:
    """Let transformers draw no progress bars, which every rank would draw.

    Yields:
        Nothing.
    """
    logging = transformers.utils.logging
    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def loaded(load: Callable[..., Any], name: str, **options: Any) -> Any:
    """Load something of transformers from a folder, the hub's cache, or the network.

    The network is asked only if it answers, because transformers tries for half a minute.

    Args:
        load: A function `from_pretrained`.
        name: A folder, or a name of the hub.
        options: Further arguments.

    Returns:
        What the function returns.

    Raises:
        OSError: It is not there, and the network does not answer.
    """
    options["trust_remote_code"] = False  # else it is asked for on a terminal
    try:
        return load(name, local_files_only=True, **options)
    except OSError:
        if Path(name).exists() or not _hub_answers():
            raise
        return load(name, **options)


def _hub_answers(seconds: float = 5.0) -> bool:
    """Return whether a connection to the hub, or to a proxy, can be made."""
    hub = urlsplit(import_library("huggingface_hub").constants.ENDPOINT)
    if getproxies():
        return True
    try:
        with socket.create_connection((hub.hostname, hub.port or 443), seconds):
            return True
    except OSError:
        return False


def _configuration(transformers: ModuleType, config: str | Mapping[str, Any]) -> Any:
    """Read a configuration, and refuse one of quantised weights."""
    try:
        if isinstance(config, str):
            found = loaded(transformers.AutoConfig.from_pretrained, config)
        else:
            fields = dict(config)
            found = transformers.AutoConfig.for_model(fields.pop("model_type", ""), **fields)
    except Exception as error:  # of any class: the fields are the user's
        where = f"'{config}'" if isinstance(config, str) else f"{config}"
        local = isinstance(config, str) and Path(config).is_dir()
        raise WorkloadError(
            f"model.arguments.config {where} is no configuration ({one_line(error)})",
            "the folder needs a config.json with model_type"
            if local
            else "name a folder with config.json, a model of the hub that the cache has or the "
            "network gives, or a table with model_type",
        ) from error
    if getattr(found, "quantization_config", None) is not None:
        raise WorkloadError(
            "the weights of this model are quantised",
            "analyse the model that it was made of: eigenpairs need floating parameters",
        )
    return found


def _with_adapter(model: nn.Module, adapter: str) -> nn.Module:
    peft = import_library("peft")
    try:
        if not Path(adapter).is_dir():
            raise FileNotFoundError("there is no such folder")
        model = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(adapter))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkloadError(
            f"model.arguments.adapter '{adapter}' is no adapter of peft ({one_line(error)})",
            "name a folder with adapter_config.json",
        ) from error
    for name, parameter in model.named_parameters():
        if ".lora_" in name or ".modules_to_save." in name:  # inference configurations freeze them
            parameter.requires_grad_(True)
    return model


def _unpacked(
    module: nn.Module, arguments: Sequence[Any], options: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Pass a mapping of inputs as named arguments."""
    if len(arguments) == 1 and isinstance(arguments[0], Mapping):
        return (), {**arguments[0], **options}
    return arguments, options


def _logits(module: nn.Module, arguments: Sequence[Any], returned: Any) -> Any:
    """Take the logits out of what a model returns."""
    return getattr(returned, "logits", returned)
