"""A surrogate for tests that meet every attack: it takes any images, and knows nothing of any model."""

import math

import torch
from torch import Tensor, nn

from planish.attacks.transfer import Surrogate


class Sketch(nn.Module):
    """Logits that are linear in the pixels, image by image, with weights that follow from the image's size."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(classes))

    def forward(self, x: Tensor) -> Tensor:
        classes, size = len(self.scale), math.prod(x.shape[1:])
        weights = torch.arange(1.0, classes * size + 1, device=x.device).sin().view(size, classes)
        return self.scale * torch.cat([image.flatten(1) @ weights for image in x.split(1)])


def sketches(classes: int) -> tuple[Surrogate, ...]:
    """Return one surrogate, for attacks that want some."""
    return (Surrogate("sketch", "0", Sketch(classes)),)
