"""Checks of a model, images and labels before anything is computed."""

import torch
from torch import Tensor, nn

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.modes import evaluating, full_precision
from planish.core.threat import ThreatModel

CHUNK = 256
"""Images that go through a model at a time."""


def logits_of(model: nn.Module, x: Tensor, chunk: int = CHUNK) -> Tensor:
    """Return the logits (N, K) in float32, evaluation mode, autocast off, without a graph."""
    with evaluating(model), torch.no_grad(), full_precision(x):
        parts = [model(part).float() for part in torch.split(x, chunk) if len(part)]
    return torch.cat(parts) if parts else x.new_zeros(0, 2)


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


def check_logits(model: nn.Module, images: Batch, chunk: int = CHUNK) -> Tensor:
    """Return the clean logits. Raises BadInput unless they are finite logits (N, K) with K above every label."""
    try:
        logits = logits_of(model, images.x, chunk)
    except BadInput:
        raise
    except Exception as error:
        shape = tuple(images.x.shape[1:])
        raise BadInput(f"the model raises {type(error).__name__} on images of shape {shape}: {error}") from error
    if logits.ndim != 2 or len(logits) != len(images.x) or logits.shape[1] < 2:
        raise BadInput(
            f"the model must return logits (N, classes), got {tuple(logits.shape)} for {len(images.x)} images"
        )
    if not bool(logits.isfinite().all()):
        raise BadInput(f"the model returns NaN or infinite logits on {int((~logits.isfinite()).any(1).sum())} images")
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise BadInput(
            f"labels lie in {low}..{high}, but the model has {logits.shape[1]} classes (0..{logits.shape[1] - 1})"
        )
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-5).all()):
        raise BadInput("the model returns probabilities; give logits: leave its softmax out, it hides the gradients")
    return logits
