"""What public calls take: each argument is checked at once; BadInput says what would be right."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.modes import Counted, dtype_of, evaluating, full_precision
from planish.core.threat import THREATS, ThreatModel, parse_threat
from planish.core.words import number_of

Images = Tensor | NDArray[Any] | Batch
"""(N, C, H, W) in [0, 1]; a Batch brings its labels and indices along."""
Labels = Tensor | NDArray[Any] | Sequence[int]
"""(N,) whole numbers."""
CHUNK = 256
"""Images that go through a model at a time."""
Measured = TypeVar("Measured", bound=tuple[Any, ...])


def threat_of(threat: object, radius: float | None = None) -> ThreatModel:
    """Return the threat model of an object, of a text such as "Linf:8/255", or of a pair such as ("L2", 0.5).

    radius: of a norm that comes without one; None = it must have one. Raises BadInput.
    """
    if isinstance(threat, ThreatModel):
        return threat
    if isinstance(threat, str):
        norm, _, text = threat.partition(":")
        if not text and radius is None:
            known = " or ".join(f"{name}:8/255" for name in THREATS)
            raise BadInput(f"threat '{threat}' has no radius; write a norm and a radius in pixels of [0, 1]: {known}")
        return parse_threat(norm, text or radius or 0.0)
    if isinstance(threat, tuple) and len(threat) == 2 and isinstance(threat[0], str):
        return parse_threat(*threat)
    raise BadInput(f'a threat is planish.Linf("8/255"), planish.L2(0.5) or a text "Linf:8/255", not {shown(threat)}')


def seed_of(seed: object) -> int:
    """Return a seed. Raises BadInput for anything but a whole number from 0 to 2**63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise BadInput(f"seed must be a whole number, not {shown(seed)}")
    if not 0 <= seed < 2**63:
        raise BadInput(f"seed must be from 0 to {2**63 - 1}, not {shown(seed)}")
    return int(seed)


def path_of(path: object) -> Path:
    """Return a path. Raises BadInput for anything but a path or a text."""
    if not isinstance(path, str | Path):
        raise BadInput(f"a path is a text or a pathlib.Path, not {shown(path)}")
    return Path(path)


def model_of(model: object) -> nn.Module:
    """Return a model. Raises BadInput for anything but a torch.nn.Module."""
    if not isinstance(model, nn.Module):
        raise BadInput(f"the model must be a torch.nn.Module from images in [0, 1] to logits, not {shown(model)}")
    return model


def batch_of(x: object, labels: object = None) -> Batch:
    """Return images and labels as one Batch on the images' device; a Batch with labels None stays. Raises BadInput.

    x: with labels None also a DataLoader of (images, labels), which is read whole.
    NumPy arrays become tensors, of float64 images float32 ones; half precision becomes float32; labels of any
    whole-number type become int64.
    """
    if isinstance(x, Batch):
        if labels is not None:
            raise BadInput("a Batch holds its labels already: give None for the labels")
        return batch_of(x.x, x.labels)._replace(indices=_tensor(x.indices, "indices"), logits=x.logits, order=x.order)
    if labels is None and isinstance(x, DataLoader):
        parts = [batch_of(pair[0], pair[1]) for pair in x]
        if parts:
            return Batch(torch.cat([part.x for part in parts]), torch.cat([part.labels for part in parts]))
    images = _tensor(x, "images x")
    if images.dtype in (torch.float16, torch.bfloat16):
        images = images.float()
    if not images.is_floating_point():
        raise BadInput(f"images x are {images.dtype}; give floats in [0, 1]: divide by 255")
    if labels is None:
        raise BadInput("labels are missing: give one whole number for each image")
    numbers = _tensor(labels, "labels")
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise BadInput(f"labels must be whole numbers (N,), not {numbers.dtype} of shape {tuple(numbers.shape)}")
    return Batch(images, numbers.to(images.device, torch.int64))


def judged_batch(model: object, x: object, labels: object, threat: ThreatModel, chunk: int = CHUNK) -> Batch:
    """Return the batch with its clean logits, everything checked, in the model's dtype or float32. Raises BadInput."""
    network, batch = model_of(model), batch_of(x, labels)
    check_images(batch, threat)
    dtype = torch.promote_types(dtype_of(network) or batch.x.dtype, torch.float32)
    return batch._replace(x=batch.x.to(dtype), logits=check_logits(network, batch, chunk))


def shown(value: object) -> str:
    """Word a wrong value: a short one as it is, else its type."""
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else f"a {type(value).__name__}"


def _tensor(values: object, what: str) -> Tensor:
    if isinstance(values, Tensor):
        with torch.inference_mode(False):
            return values.clone() if values.is_inference() else values.detach()
    try:
        array = np.asarray(values)
        tensor = torch.from_numpy(np.ascontiguousarray(array))
    except (TypeError, ValueError):
        raise BadInput(f"{what} must be a tensor or a NumPy array, not {shown(values)}") from None
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def logits_of(model: nn.Module, x: Tensor, chunk: int = CHUNK) -> Tensor:
    """Return the logits (N, K) in float32 or wider, evaluation mode, autocast off, without a graph."""
    network = model if isinstance(model, Counted) else Counted(model)
    with evaluating(network), torch.no_grad(), full_precision(x):
        parts = [network(part) for part in torch.split(x, chunk) if len(part)]
    return torch.cat(parts) if parts else x.new_zeros(0, 2)


def in_chunks(measure: Callable[[Batch], Measured], batch: Batch, chunk: int = CHUNK) -> Measured:
    """Return what the measure says of all images, its (N, ...) tensors joined. The outcome does not depend on `chunk`.

    measure: takes a batch and returns a named tuple of tensors whose first dimension is the images, as all measures of
    an audit but estimated constants do.
    """
    parts = [measure(batch.select(slice(at, at + chunk))) for at in range(0, max(len(batch.x), 1), chunk)]
    return type(parts[0])(*(torch.cat(values) for values in zip(*parts, strict=True)))


def check_images(images: Batch, threat: ThreatModel) -> None:
    """Raise BadInput unless x is (N, C, H, W), not empty, finite and inside the box, each with a label and an index.

    All three must be on one device.
    """
    x = images.x
    if x.ndim != 4 or len(x) == 0:
        raise BadInput(f"images must be (N, channels, height, width) with N > 0, got {tuple(x.shape)}")
    for what, values in (("labels", images.labels), ("indices", images.indices)):
        if values.shape != (len(x),) or values.dtype != torch.int64:
            shape = tuple(values.shape)
            raise BadInput(f"{what} must be int64 of shape ({len(x)},), got {values.dtype} of shape {shape}")
        if values.device != x.device:
            raise BadInput(f"the images are on {x.device} and the {what} on {values.device}; move them to one device")
    low, high = float(x.min()), float(x.max())
    if not (low >= threat.low and high <= threat.high):
        raise BadInput(
            f"pixels lie in [{low:g}, {high:g}], not in [{threat.low:g}, {threat.high:g}]; give raw images divided "
            "by 255 and put any normalization inside the model"
        )


def _remedy(output: Tensor) -> str:
    """Word how to make logits of what is none."""
    if not output.is_floating_point():
        return (
            f" of {output.dtype}; one that returns classes: return torch.nn.functional.one_hot(classes, K) - 0.5, "
            "and attack it by noise, square and boundary, which need no gradient"
        )
    if output.ndim == 1 or output.shape[1:] == (1,):
        return "; of one output z for two classes, make two logits: torch.stack([torch.zeros_like(z), z], 1)"
    return ""


def check_logits(model: nn.Module, images: Batch, chunk: int = CHUNK) -> Tensor:
    """Return the clean logits. Raises BadInput unless they are finite logits (N, K) with K above every label."""
    try:
        logits = logits_of(model, images.x, chunk)
    except BadInput:
        raise
    except Exception as error:
        shape = tuple(images.x.shape[1:])
        raise BadInput(f"the model raises {type(error).__name__} on images of shape {shape}: {error}") from error
    if logits.ndim != 2 or len(logits) != len(images.x) or logits.shape[1] < 2 or not logits.is_floating_point():
        raise BadInput(
            f"the model must return logits (N, classes), got {tuple(logits.shape)} for {number_of(len(images.x))}"
            f"{_remedy(logits)}"
        )
    mad = int((~logits.isfinite()).any(1).sum())
    if mad:
        raise BadInput(f"the model returns NaN or infinite logits on {number_of(mad)}")
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise BadInput(
            f"labels lie in {low}..{high}, but the model has {logits.shape[1]} classes (0..{logits.shape[1] - 1})"
        )
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-5).all()):
        raise BadInput(
            "the model returns probabilities; give logits: leave its softmax out, it hides the gradients, "
            "or return their log"
        )
    return logits
