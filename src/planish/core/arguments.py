"""What public calls take: each argument is checked at once; BadInput says what would be right."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset

from planish.core import hints
from planish.core.batch import Batch
from planish.core.errors import BadInput, ended
from planish.core.footprint import CHUNK, in_parts
from planish.core.modes import Counted, dtype_of, evaluating, every_module, full_precision
from planish.core.randomness import reproducible
from planish.core.threat import ThreatModel
from planish.core.threat_texts import parse_threat
from planish.core.weighted import Weighted
from planish.core.words import number_of

Images = Tensor | NDArray[Any] | Batch | Dataset[Any] | Iterable[Any]
"""(N, C, H, W) in [0, 1]; or with labels, as `batch_of` takes it: a Batch, a pair, a Dataset, a DataLoader."""
Labels = Tensor | NDArray[Any] | Sequence[int] | None
"""(N,) whole numbers; None where the images bring theirs."""


def threat_of(threat: object, radius: float | None = None, *, own_radii: bool = False) -> ThreatModel:
    """Return the threat model of an object, of a text such as "Linf:8/255", or of a pair such as ("L2", 0.5).

    radius: of a norm that comes without one; None = it must have one. own_radii: a radius for each image or pixel may
    be given, as a pair of a norm and a tensor, as `Weighted.of_radii` takes it. Raises BadInput.
    """
    if isinstance(threat, tuple) and len(threat) == 2 and isinstance(threat[1], Tensor | np.ndarray):
        given = threat[1]
        threat = Weighted.of_radii(str(threat[0]), given if isinstance(given, Tensor) else _of_array(given, "radii"))
    if isinstance(threat, Weighted) and not own_radii:
        raise BadInput("a radius for each image or pixel is for attacks, evaluate and verify; give one number here")
    if isinstance(threat, ThreatModel):
        return threat
    if isinstance(threat, str):
        return parse_threat(threat, None if threat.partition(":")[2] else radius)
    if isinstance(threat, tuple) and len(threat) == 2 and isinstance(threat[0], str):
        return parse_threat(*threat)
    if threat is None:
        raise BadInput('no threat is given: write threat="Linf:8/255", planish.Linf("8/255") or planish.L2(0.5)')
    raise BadInput(f'a threat is planish.Linf("8/255"), planish.L2(0.5) or a text "Linf:8/255", not {shown(threat)}')


def distance_threat_of(threat: object) -> ThreatModel:
    """Return the threat of distances as `threat_of` does, radius 0 unless it has one. Raises BadInput, also for levels.

    A nearest image lies on a boundary, between levels.
    """
    found = threat_of(threat, radius=0.0)
    if found.levels is not None:
        raise BadInput(
            f"a distance attack does not keep images to {found.levels} levels: leave levels out, or give the attack to "
            "planish.evaluate, which brings what it finds to these levels and counts it within the radius"
        )
    return found


def seed_of(seed: object) -> int:
    """Return a seed. Raises BadInput for anything but a whole number from 0 to 2**63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise BadInput(f"seed must be a whole number, not {shown(seed)}")
    if not 0 <= seed < 2**63:
        raise BadInput(f"seed must be from 0 to {2**63 - 1}, not {shown(seed)}")
    return int(seed)


def path_of(path: object) -> Path:
    """Return a path. Raises BadInput for anything but a path or a text, and for an empty one."""
    if path == "" or not isinstance(path, str | Path):
        raise BadInput(f"a path is a text or a pathlib.Path, not {shown(path)}")
    return Path(path)


def model_of(model: object) -> nn.Module:
    """Return a model. Raises BadInput for anything but a torch.nn.Module."""
    if not isinstance(model, nn.Module):
        told = f"the model must be a torch.nn.Module from images in [0, 1] to logits, not {shown(model)}"
        wrap = "; planish.models.Function makes one of a function of tensors, BlackBox of one of NumPy arrays"
        raise BadInput(told + wrap * callable(model))
    check_settled(model)
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise BadInput("the model was made under torch.inference_mode(), so it has no gradients: make it outside")
    return model


def is_settled(model: nn.Module) -> bool:
    """Say whether all weights have a shape, which those of lazy modules get at their first forward."""
    return not any(map(_is_lazy, every_module(model)))


def check_settled(model: nn.Module) -> None:
    """Raise BadInput for weights without a shape."""
    for module in every_module(model):
        if _is_lazy(module):
            raise BadInput(
                f"the {type(module).__name__} in the model has no weights yet: run one batch through the model first, "
                "model(x)"
            )


def _is_lazy(module: nn.Module) -> bool:
    values = (*module._parameters.values(), *module._buffers.values())
    return any(value is not None and is_lazy(value) for value in values)


def batch_of(x: object, labels: object = None, model: nn.Module | None = None) -> Batch:
    """Return images and labels as one Batch; this is what every public call makes of what it is given.

    x: images, with their labels; or, with labels None, what holds both: a Batch, a pair (x, labels), a Dataset of
    pairs, a set that `planish.data.load` returns, or a DataLoader or whatever else yields batches of pairs, which is
    read whole, as drawn from seed 0.
    model: what is no tensor is brought to its device; tensors stay where they are, and labels go to their images.
    NumPy arrays and lists become tensors, of float64 images float32 ones; half precision becomes float32; labels of
    any whole-number type become int64. Raises BadInput.
    """
    if labels is None and not isinstance(x, Tensor | np.ndarray):
        return _with_labels(x, model)
    if labels is not None and (
        isinstance(x, Batch | Dataset | DataLoader) or (isinstance(x, tuple) and is_pair(x)) or hasattr(x, "as_batch")
    ):
        raise BadInput(f"a {type(x).__name__} holds its labels already: give None for the labels")
    images = _tensor(x, "images x")
    if images.dtype in (torch.float16, torch.bfloat16):
        images = images.float()
    if not images.is_floating_point():
        raise BadInput(f"images x are {images.dtype}; give floats in [0, 1]: divide by 255")
    if labels is None:
        raise BadInput("labels are missing: give one whole number for each image")
    if images.ndim == 3:
        hint = "one image is x[None], grey images without channels are x[:, None]"
        raise BadInput(f"images must be (N, channels, height, width), got {tuple(images.shape)}; {hint}")
    numbers = _whole_numbers(labels, "labels")
    if not isinstance(x, Tensor) and (device := device_of(model)) is not None:
        images = images.to(device)
    return Batch(images, numbers.to(images.device))


def _with_labels(x: object, model: nn.Module | None) -> Batch:
    """Return the Batch of what holds images and labels. Raises BadInput."""
    if isinstance(x, Batch):
        own = batch_of(x.x, x.labels)
        targets = None if x.targets is None else _whole_numbers(x.targets, "targets").to(own.x.device)
        return own._replace(indices=_tensor(x.indices, "indices"), logits=x.logits, order=x.order, targets=targets)
    if is_pair(x):
        return batch_of(x[0], x[1], model)  # type: ignore[index]
    if hasattr(x, "as_batch"):
        found: Batch = x.as_batch()
    elif isinstance(x, str) or not isinstance(x, Iterable | Dataset):
        raise BadInput(f"images x must be a tensor or a NumPy array, a DataLoader or a Dataset, not {shown(x)}")
    else:
        with reproducible(0):
            parts = [pair_of(item) for item in _loader(x)]
        if not parts:
            raise BadInput(f"{shown(x)} yields no images: give it some")
        found = Batch(torch.cat([part.x for part in parts]), torch.cat([part.labels for part in parts]))
    device = device_of(model)
    return found if device is None else found.to(device)


def is_pair(x: object) -> bool:
    """Say whether this is images and their labels, and not a sequence of batches or of images."""
    whole = isinstance(x, tuple | list) and not isinstance(x, Batch) and len(x) == 2
    return whole and isinstance(x[0], Tensor | np.ndarray)  # type: ignore[index]


def is_loader(x: object) -> bool:
    """Say whether this yields batches of images and labels anew each time, such as a DataLoader."""
    other = (
        isinstance(x, Tensor | np.ndarray | Batch | Dataset | str | Iterator) or is_pair(x) or hasattr(x, "as_batch")
    )
    return isinstance(x, Iterable) and not other


def pair_of(item: object) -> Batch:
    """Return the batch that a loader yields: images and labels, and what else comes with them left out."""
    if isinstance(item, Batch):
        return item
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise BadInput(f"a loader must yield pairs of images and labels, not {shown(item)}{hints.of_item(item)}")
    return batch_of(item[0], item[1])


def _loader(x: Any) -> Iterable[Any]:
    """Return what yields batches: a Dataset is collated as PyTorch does it. Raises BadInput."""
    if not isinstance(x, Dataset):
        return x  # type: ignore[no-any-return]

    def batches() -> Iterator[Any]:
        try:
            yield from DataLoader(x, batch_size=CHUNK)
        except (TypeError, RuntimeError) as error:
            told = " ".join(str(error).split())
            raise BadInput(f"the Dataset gives no pairs (image as a tensor, label): {told[:200]}") from error

    return batches()


def device_of(model: nn.Module | None) -> torch.device | None:
    """Return where the model's first parameter, or buffer, lies; None where it has neither."""
    values = () if model is None else itertools.chain(model.parameters(), model.buffers())
    return next((value.device for value in values), None)


class Ball(Protocol):
    """What images must fit: a threat, or several at once."""

    @property
    def low(self) -> float:
        """The least pixel."""
        ...

    @property
    def high(self) -> float:
        """The largest pixel."""
        ...

    def check(self, x: Tensor) -> None:
        """Raise BadInput for images (N, ...) that do not fit."""
        ...


def judged_batch(model: object, x: object, labels: object, threat: Ball, chunk: int | None = None) -> Batch:
    """Return the batch with its clean logits, everything checked, in the model's dtype or float32. Raises BadInput."""
    network = model_of(model)
    batch = batch_of(x, labels, network)
    check_images(batch, threat)
    logits = check_logits(network, batch, chunk)
    return batch._replace(x=batch.x.to(judged_dtype(network, batch.x)), logits=logits)


def judged_dtype(model: nn.Module, x: Tensor) -> torch.dtype:
    """Return the dtype in which images are judged: the model's, and float32 at least."""
    return torch.promote_types(dtype_of(model) or x.dtype, torch.float32)


def device_named(device: Any) -> torch.device:
    """Return the device of a name such as "cuda:1". Raises BadInput if nothing can be computed there."""
    try:
        return torch.empty((0,), device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        told = str(error).partition("\n")[0]
        raise BadInput(f"device {shown(device)} cannot be used here: {told}") from error


def shown(value: object) -> str:
    """Word a wrong value: a short one as it is, else its type."""
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else f"a {type(value).__name__}"


def _tensor(values: object, what: str) -> Tensor:
    if isinstance(values, Tensor):
        with torch.inference_mode(False):
            return values.clone() if values.is_inference() else values.detach()
    tensor = _of_array(values, what)
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _of_array(values: object, what: str) -> Tensor:
    """Return an array, or what NumPy makes one of, as a tensor of its type. Raises BadInput."""
    try:
        array = np.ascontiguousarray(np.asarray(values))
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(array.astype(np.int64) if array.dtype.kind == "u" and array.itemsize > 1 else array)
    except (TypeError, ValueError):
        found = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else shown(values)
        raise BadInput(f"{what} must be a tensor or a NumPy array of a type that PyTorch has, not {found}") from None


def _whole_numbers(values: object, what: str) -> Tensor:
    numbers = _tensor(values, what)
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        found = f"{numbers.dtype} of shape {tuple(numbers.shape)}{hints.of_classes(numbers, what)}"
        raise BadInput(f"{what} must be whole numbers (N,), not {found}")
    return numbers.to(torch.int64)


def logits_of(model: nn.Module, x: Tensor, chunk: int | None = None) -> Tensor:
    """Return the logits (N, K) in float32 or wider, evaluation mode, autocast off, without a graph."""
    network = model if isinstance(model, Counted) else Counted(model)
    with evaluating(network), torch.no_grad(), full_precision(x):
        return in_parts(network, x, chunk) if len(x) else x.new_zeros(0, 2)


def check_images(images: Batch, threat: Ball) -> None:
    """Raise BadInput unless x is (N, C, H, W), not empty, finite and inside the box, each with a label and an index.

    All three must be on one device.
    """
    x = images.x
    if x.ndim != 4 or x.numel() == 0:
        wanted = "images must be (N, channels, height, width) with none of these 0"
        raise BadInput(f"{wanted}, got {tuple(x.shape)}{hints.of_images(x)}")
    for what, values in (("labels", images.labels), ("indices", images.indices)):
        if values.shape != (len(x),) or values.dtype != torch.int64:
            found = f"{values.dtype} of shape {tuple(values.shape)}{hints.of_classes(values, what)}"
            raise BadInput(f"{what} must be int64 of shape ({len(x)},), got {found}")
        if values.device != x.device:
            raise BadInput(f"the images are on {x.device} and the {what} on {values.device}; move them to one device")
    low, high = float(x.min()), float(x.max())
    if not (low >= threat.low and high <= threat.high):
        raise BadInput(
            f"pixels lie in [{low:g}, {high:g}], not in [{threat.low:g}, {threat.high:g}]; give raw images divided "
            "by 255 and put any normalization inside the model"
        )
    threat.check(x)


def check_classes(labels: Tensor, classes: int) -> None:
    """Raise BadInput unless all labels are classes of the model."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise BadInput(
            f"labels lie in {low}..{high}, but the model has {classes} classes (0..{classes - 1})"
            f"{hints.of_range(low, high, classes)}"
        )


def _check_targets(images: Batch, classes: int) -> None:
    """Raise BadInput unless the classes that are aimed at, where any are given, are the model's, one for each image.

    An image's own label is none: it would be reached without a search.
    """
    if (targets := images.targets) is None:
        return
    if targets.shape != images.labels.shape:
        raise BadInput(f"targets must be one class for each of {number_of(len(images.x))}, got {tuple(targets.shape)}")
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        raise BadInput(f"targets lie in {int(targets.min())}..{int(targets.max())}, but classes in 0..{classes - 1}")
    if len(own := (targets == images.labels).nonzero()):
        index, label = int(images.indices[own[0]]), int(targets[own[0]])
        raise BadInput(
            f"image {index} is to be driven to class {label}, which is its own label: give it another class, or leave "
            "it out"
        )


def unit_error(model: nn.Module, logits: Tensor) -> float:
    """Return how far from 1 the sum of a row of probabilities may be, by the model's dtype."""
    return max(1e-5, torch.finfo(dtype_of(model) or logits.dtype).eps)


def check_logits(model: nn.Module, images: Batch, chunk: int | None = None) -> Tensor:
    """Return the clean logits. Raises BadInput unless they are finite logits (N, K) with K above every label."""
    try:
        logits = logits_of(model, images.x, chunk)
    except BadInput:
        raise
    except SystemExit as error:
        raise ended("the model ends the program when it is called") from error
    except Exception as error:
        shape = tuple(images.x.shape[1:])
        told = f"the model raises {type(error).__name__} on images of shape {shape}: {error}"
        raise BadInput(f"{told}{hints.of_layout(images.x)}") from error
    if logits.ndim != 2 or len(logits) != len(images.x) or logits.shape[1] < 2 or not logits.is_floating_point():
        raise BadInput(
            f"the model must return logits (N, classes), got {tuple(logits.shape)} for {number_of(len(images.x))}"
            f"{hints.of_output(logits)}"
        )
    mad = int((~logits.isfinite()).any(1).sum())
    if mad:
        raise BadInput(f"the model returns NaN or infinite logits on {number_of(mad)}")
    check_classes(images.labels, logits.shape[1])
    _check_targets(images, logits.shape[1])
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < unit_error(model, logits)).all()):
        raise BadInput(
            "the model returns probabilities; give logits: leave its softmax out, it hides the gradients, "
            "or return their log"
        )
    return logits
