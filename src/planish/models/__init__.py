"""Architectures, one file each: NCHW images in [0, 1] -> logits, with the normalization inside."""

import inspect
import traceback
from collections.abc import Callable
from typing import Any, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from planish.core.errors import BadInput, between, ended, nearest
from planish.registry import Component, imported, resolve
from planish.storage.reading import refuse_large

__all__ = ["BlackBox", "Function", "Normalized", "Pointwise", "SmoothReLU", "activation", "build"]
LIBRARIES = ("timm", "hf", "robustbench", "torchvision")
"""What other libraries' models are named by: "timm:NAME", "hf:NAME", "robustbench:NAME" and "torchvision:NAME"."""


def __dir__() -> list[str]:
    return __all__


class Normalized(nn.Module):
    """A network behind (x - mean) / std per channel, so that x and radii stay in pixels of [0, 1].

    classes: what whoever published the network calls its classes; none if that is not known.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], classes: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or any(value <= 0 for value in std):
            raise BadInput(f"normalization needs one mean and one positive std per channel, got {mean} and {std}")
        self.network, self.classes = network, classes
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def extra_repr(self) -> str:
        """Say by which numbers images are normalised, for whoever prints the model."""
        mean, std = (", ".join(f"{value:.4g}" for value in part.flatten().tolist()) for part in (self.mean, self.std))
        return f"mean=({mean}), std=({std})"

    def stated(self) -> dict[str, Any]:
        """Return what is known of the model before it sees an image: its classes, and how it normalises, if it does."""
        known: dict[str, Any] = {"classes": list(self.classes)} if self.classes else {}
        return known | ({"normalization": self.extra_repr()} if self.mean.any() or (self.std != 1).any() else {})

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, K), of images (N, C, H, W) in [0, 1]; the network may wrap them in `.logits`."""
        output: Any = self.network((x - self.mean) / self.std)
        logits: Tensor = getattr(output, "logits", output)
        return logits


class Function(nn.Module):
    """A function of tensors as a model: images (N, C, H, W) in [0, 1] -> logits (N, K).

    Weights that it uses are not the model's: they are moved to no device, and a record does not tell them from others.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.eval()  # a function has no other mode

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K)."""
        return self.function(x)


class BlackBox(nn.Module):
    """A function of NumPy arrays as a model: float32 images (N, C, H, W) in [0, 1] -> logits (N, K), no gradients.

    It is judged by attacks that need none: noise, square, boundary and transfer. The same holds for weights as of
    `Function`.
    """

    def __init__(self, function: Callable[[NDArray[np.float32]], Any]) -> None:
        super().__init__()
        self.function = function
        self.eval()  # a function has no other mode

    def forward(self, x: Tensor) -> Tensor:
        """Return what the function answers, as float32 (N, K), on the device of the images."""
        answers = np.asarray(self.function(x.detach().float().cpu().numpy()))
        return torch.as_tensor(answers, device="cpu").float().to(x.device)


def is_black_box(model: nn.Module) -> bool:
    """Say whether no gradient leads through a model by its nature: it is a `BlackBox`, or is built round one."""
    return any(isinstance(module, BlackBox) for module in model.modules())


class Pointwise(nn.Conv2d):
    """A 1x1 convolution without bias of every stride-th pixel in both directions, as a plain one of those pixels.

    PyTorch's own strided one corrupts memory on CPUs: see `corrupts_memory`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, bias=False)
        self.every = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution, (N, outputs, ceil(H / stride), ceil(W / stride))."""
        return nn.functional.conv2d(x[..., :: self.every, :: self.every], self.weight)


class SmoothReLU(nn.Module):
    """The C2 ReLU of Finlay and Oberman 2019 (Remark 2.2): 0 below -1/2, x above 1/2, a quartic between."""

    def forward(self, x: Tensor) -> Tensor:
        shifted = (x + 0.5).clamp(0.0, 1.0)
        return torch.where(x > 0.5, x, shifted.pow(3) * (1 - shifted / 2))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "smooth-relu": SmoothReLU,
}


def activation(name: str) -> nn.Module:
    """Return a new activation of that name. Raises BadInput."""
    if name not in ACTIVATIONS:
        raise BadInput(f"unknown activation '{name}'.{nearest(name, ACTIVATIONS)} Known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def corrupts_memory(module: nn.Module) -> bool:
    """Return whether this layer's backward pass leaves its memory on a CPU if its images lie channels last.

    PyTorch 2.13's strided 1x1 convolutions of fewer input channels than a vector register has places (8, or 16 with
    AVX-512) do, and group norms whose input needs no gradient; the process then dies, now or later, with "double free
    or corruption", "corrupted size" or a segmentation fault.
    """
    if isinstance(module, nn.GroupNorm):
        return True
    if not isinstance(module, nn.Conv2d) or set(module.kernel_size) != {1}:
        return False
    return max(module.stride) > 1 and module.in_channels // module.groups < 16


def is_borrowed(name: str) -> bool:
    """Say whether a model's name begins with the name of a library, such as "timm:..."."""
    return name.partition(":")[0] in LIBRARIES


LARGEST_OPTION = 65536
"""What a whole number of an architecture, such as its width, may be."""
COPIES = 4
"""Of the weights, while training: the gradients, the momentum and the average are as large."""


def _check_options(component: Component, name: str, options: dict[str, Any]) -> None:
    """Raise BadInput for options that a user's function or a registered one does not take."""
    try:
        signature = inspect.signature(component)
        signature.bind(**options)
    except TypeError as error:
        strange = next((key for key in options if key not in signature.parameters), "")
        hint = strange and nearest(strange, signature.parameters, ("model.name", "model.weights"))
        told = f"model '{name}' does not take these options: {error}"
        raise BadInput(f"{told}.{hint}" if hint else told) from error
    except ValueError:  # some callables do not tell what they take
        pass


def _check_size(component: Component, name: str, options: dict[str, Any]) -> None:
    """Raise BadInput unless the network of a registered name fits into the memory."""
    hints = get_type_hints(component)
    for key, value in options.items():
        if hints.get(key) is int and (isinstance(value, bool) or not isinstance(value, int)):
            raise BadInput(f"model '{name}': {key} must be a whole number, got {value!r}")
        if hints.get(key) is int:
            between(1, LARGEST_OPTION, **{f"model '{name}': {key}": value})
    with torch.device("meta"):
        planned = _made(component, name, options)
    tensors = (*planned.parameters(), *planned.buffers())
    refuse_large(f"model '{name}'", COPIES * sum(value.numel() * value.element_size() for value in tensors))


def _made(component: Component, name: str, options: dict[str, Any]) -> nn.Module:
    """Call what makes a network. Raises BadInput that names the line if it fails, or if it makes something else."""
    try:
        model = component(**options)
    except BadInput:
        raise
    except SystemExit as error:
        raise ended(f"model '{name}' ends the program when it is built") from error
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise BadInput(f"model '{name}' cannot be built: {what} ({place.filename}, line {place.lineno})") from error
    if not isinstance(model, nn.Module):
        raise BadInput(f"model '{name}' returned {type(model).__name__}, not a torch.nn.Module")
    return model


def build(name: str, *, classes: int, channels: int, **options: Any) -> nn.Module:
    """Return a new network of a registered name, "package.module:function", "file.py:function", or of a library:
    "timm:...", "hf:...", "robustbench:..." or "torchvision:...".

    Registered architectures take classes, channels and their own options (width, activation, ...), the first of them
    also as numbers: wide-resnet-34-10. A user's function takes the options alone and returns a torch.nn.Module from
    images in [0, 1] to logits. Models of libraries come `Normalized` as their configuration says, with
    their published weights unless `pretrained` is false; classes and channels 0 mean their own numbers.
    Raises BadInput.
    """
    if is_borrowed(name):
        from planish.models.pretrained import borrowed

        try:
            return Normalized(*borrowed(name, classes, channels, options))
        except TypeError as error:
            raise BadInput(f"model '{name}' does not take these options: {error}") from error
    if ":" in name:
        component = imported(name, "model")
        _check_options(component, name, options)
        return _made(component, name, options)
    component, numbers = resolve("models", name)
    options = {"classes": classes, "channels": channels, **numbers, **options}
    _check_options(component, name, options)
    _check_size(component, name, options)
    return _made(component, name, options)
