"""The images in float64, and a network whose running averages are nobody's."""

import pytest
from torch import nn

from planish.core.batch import Batch


@pytest.fixture
def images(batch: Batch) -> Batch:
    return batch._replace(x=batch.x.double())


@pytest.fixture
def warm(normed: nn.Module, images: Batch) -> nn.Module:
    """Running averages that differ from any batch's statistics."""
    for _ in range(3):
        normed(images.x.flip(3) ** 2)
    return normed
