"""As many images of each class as a limit allows, from any other kind of data."""

from pathlib import Path

import torch

from planish.core.errors import BadInput
from planish.data.images import Images
from planish.data.listing import Listing
from planish.data.source import find


def find_balanced(path: Path | None, split: str, limit: int | None) -> Images | Listing:
    """As many images of each class as the limit allows, drawn from other data: balanced:parquet:PATH.

    The draw is random but fixed; classes that have too few images leave their share to the others. Without a limit it
    is the data itself. Raises BadInput.
    """
    if path is None:
        raise BadInput("'balanced' needs data to draw from: write balanced:DATA, such as balanced:parquet:PATH")
    found = find(str(path), split)
    if limit is None or limit >= len(found):
        return found
    return found.take(balanced_rows(found.labels, limit))


def balanced_rows(labels: torch.Tensor, limit: int) -> torch.Tensor:
    """Return `limit` rows, rising, of labels (N,): the first of each class in a fixed random order, the second, ..."""
    order = torch.randperm(len(labels), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    by_class = order[labels[order].argsort(stable=True)]
    starts = torch.searchsorted(labels[by_class].contiguous(), labels[by_class].contiguous())
    rank = torch.arange(len(labels), device="cpu") - starts
    return by_class[rank.argsort(stable=True)[:limit]].sort().values


COMPONENTS = {"balanced": find_balanced}
