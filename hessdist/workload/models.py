"""Built-in networks. Any other `torch.nn.Module` can be used as well."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hessdist.errors import InputError, WorkloadError
from hessdist.workload.factories import call_factory, find_factory
from hessdist.workload.huggingface import huggingface
from hessdist.workload.meta import parameters_on_meta
from hessdist.workload.preparation import require_values, unwrapped

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


def _activation(network: str, name: str) -> Callable[[], nn.Module]:
    if name not in _ACTIVATIONS:
        raise WorkloadError(
            f"{network}: activation '{name}' is not known",
            f"use one of {', '.join(_ACTIVATIONS)}",
        )
    return _ACTIVATIONS[name]


def lenet(
    in_channels: int = 1,
    image_size: int = 28,
    num_classes: int = 10,
    activation: str = "relu",
) -> nn.Module:
    """Build the LeNet of Alain, Le Roux and Manzagol: 3,274,634 parameters for 28 x 28 images.

    Two 5 x 5 convolutions (`conv1`, 32 channels; `conv2`, 64; padding 2), each with an activation
    and 2 x 2 max pooling, then `fc1` (1,024 units and an activation) and `fc2`.

    Args:
        in_channels: The number of channels of the images.
        image_size: The height and width of the images in pixels, at least 4.
        num_classes: The number of outputs.
        activation: The activation: relu, tanh, sigmoid, gelu, softplus or identity.

    Returns:
        The network from images (B, in_channels, image_size, image_size) to logits (B, num_classes).

    Raises:
        WorkloadError: `image_size` leaves no pixel after two poolings, or the activation is not
            known.
    """
    pooled = image_size // 2 // 2
    if pooled < 1:
        raise WorkloadError(f"lenet cannot take images of {image_size} pixels", "use at least 4")
    activate = _activation("lenet", activation)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 32, 5, padding=2),
            activation1=activate(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 5, padding=2),
            activation2=activate(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * pooled * pooled, 1024),
            activation3=activate(),
            fc2=nn.Linear(1024, num_classes),
        )
    )


def lenet5(
    in_channels: int = 1,
    image_size: int = 28,
    num_classes: int = 10,
    activation: str = "relu",
) -> nn.Module:
    """Build LeNet-5 (LeCun et al. 1998) with ReLU and max pooling: 61,706 parameters for 28 x 28.

    Two 5 x 5 convolutions (`conv1`, 6 channels, padding 2; `conv2`, 16, no padding), each with
    ReLU and 2 x 2 max pooling, then `fc1` (120), `fc2` (84) and `fc3`.

    Args:
        in_channels: The number of channels of the images.
        image_size: The height and width of the images in pixels, at least 12.
        num_classes: The number of outputs.
        activation: The activation: relu, tanh, sigmoid, gelu, softplus or identity.

    Returns:
        The network from images (B, in_channels, image_size, image_size) to logits (B, num_classes).

    Raises:
        WorkloadError: `image_size` leaves no pixel for the second pooling, or the activation is not
            known.
    """
    pooled = (image_size // 2 - 4) // 2
    if pooled < 1:
        raise WorkloadError(f"lenet5 cannot take images of {image_size} pixels", "use at least 12")
    activate = _activation("lenet5", activation)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 6, 5, padding=2),
            activation1=activate(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            activation2=activate(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * pooled * pooled, 120),
            activation3=activate(),
            fc2=nn.Linear(120, 84),
            activation4=activate(),
            fc3=nn.Linear(84, num_classes),
        )
    )


class NTKLinear(nn.Module):
    """A linear layer that is scaled in the function instead of the weights.

    It is z = W x / √fan_in + 0.1 b, with all entries of W and b drawn from N(0, 1) (Jacot, Gabriel
    and Hongler 2018, section 3, whose β is 0.1). With this parametrization and one step size,
    gradient descent converges to that of the neural tangent kernel for large widths.

    Args:
        fan_in: The number of inputs.
        fan_out: The number of outputs.
        bias: Whether the layer has b.
    """

    def __init__(self, fan_in: int, fan_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in))
        self.bias = nn.Parameter(torch.randn(fan_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, fan_in) to (B, fan_out)."""
        shift = None if self.bias is None else 0.1 * self.bias
        return nn.functional.linear(x, self.weight / self.weight.shape[1] ** 0.5, shift)


_LINEAR: dict[str, Callable[..., nn.Module]] = {"standard": nn.Linear, "ntk": NTKLinear}


def mlp(
    widths: Sequence[int],
    activation: str = "relu",
    bias: bool = True,
    parametrization: str = "standard",
) -> nn.Module:
    """Build a fully connected network; inputs of any shape are flattened.

    Args:
        widths: The sizes of the input, the hidden layers and the output: at least two numbers.
        activation: The activation between layers: relu, tanh, sigmoid, gelu, softplus or identity.
        bias: Whether the layers have biases.
        parametrization: "standard", with PyTorch's layers and initialisation, or "ntk", see
            `NTKLinear`.

    Returns:
        The network from (B, ...) to (B, widths[-1]), with layers `fc1`, `fc2`, ...

    Raises:
        WorkloadError: Fewer than two widths, a width below 1, or an unknown activation or
            parametrization.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise WorkloadError(
            f"mlp: widths = {list(widths)} is no network", "give at least two, each 1 or more"
        )
    activate = _activation("mlp", activation)
    if parametrization not in _LINEAR:
        raise WorkloadError(
            f"mlp: parametrization '{parametrization}' is not known",
            f"use one of {', '.join(_LINEAR)}",
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    last = len(widths) - 1
    for index, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
        layers[f"fc{index}"] = _LINEAR[parametrization](fan_in, fan_out, bias=bias)
        if index < last:
            layers[f"{activation}{index}"] = activate()
    return nn.Sequential(layers)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet": lenet,
    "lenet5": lenet5,
    "mlp": mlp,
    "huggingface": huggingface,
}


def build_model(factory: str, arguments: Mapping[str, Any], on_meta: bool = False) -> nn.Module:
    """Build the model that a job names.

    Args:
        factory: "lenet", "lenet5", "mlp", "huggingface" or "package.module:callable".
        arguments: The keyword arguments of the factory.
        on_meta: Whether the parameters have no values yet.

    Returns:
        The model, on the CPU; with `on_meta` its parameters are on the meta device.

    Raises:
        WorkloadError: The factory is not found, fails, does not return a module, or returns one
            without values.
    """
    found = find_factory(factory, MODELS, "model.factory")
    model = _on_meta(found, arguments) if on_meta else call_factory(found, arguments, "model")
    if not isinstance(model, nn.Module):
        raise WorkloadError(
            f"model.factory: '{factory}' returned {type(model).__name__}, not a torch.nn.Module",
            "name a callable that builds the model",
        )
    require_values(model, on_meta)
    return unwrapped(model)


def _on_meta(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a factory without memory for parameters."""
    try:
        with parameters_on_meta():
            return call_factory(factory, arguments, "model")
    except InputError as error:
        raise type(error)(
            error.what, f"{error.remedy}, or use model.build = 'whole' if it needs their values"
        ) from error
