"""Where a record comes from: the model, the images and the planish that made it."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from planish.core.batch import Batch
from planish.storage.provenance import provenance


def model_digest(model: nn.Module) -> str:
    """Return the SHA-256 of the model's parameters and buffers with their names."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def data_digest(images: Batch) -> str:
    """Return the SHA-256 of the images, labels and indices."""
    digest = hashlib.sha256(repr(tuple(images.x.shape)).encode())
    for value in images[:3]:
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def origin(model: nn.Module, images: Batch, about: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """Return a record's meta, JSON-able: what the caller knows, digests, the record's own facts, and provenance.

    model: as it was handed over. images: with clean logits. about: such as "seed", "model" {"name"} and "data" {"name",
    "classes"}, to which digests and the number of classes are added. facts: of this kind of record. Provenance:
    versions, code digest, commit, device and command line.
    """
    assert images.logits is not None
    return {
        **about,
        "model": {**about.get("model", {}), "digest": model_digest(model), "classes": images.logits.shape[1]},
        "data": {**about.get("data", {}), "digest": data_digest(images)},
        **facts,
        **provenance(images.x.device),
    }
