"""What a command is given in files: a radius for each image or pixel, and a class for each image to be driven to."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planish.core.batch import Batch
from planish.core.errors import BadInput, nearest
from planish.core.threat import ThreatModel
from planish.core.threat_texts import parse_threat
from planish.core.weighted import Weighted
from planish.core.words import number_of
from planish.data.on_demand import OnDemand
from planish.storage.reading import lines_of

EIGHT_BIT = 256
"""Levels of a channel in a file of 8 bits."""
AIMING = "targeted"
"""The attack that drives images to the classes given."""


def threat_in(norm: str, radius: str | float, levels: int | None = None) -> ThreatModel:
    """Return the threat of a norm and a radius, a number or FILE.npy of radii as `Weighted.of_radii` takes them.

    levels: of adversarial images. Raises BadInput.
    """
    path = str(radius)
    if not path.endswith(".npy"):
        return replace(parse_threat(norm, radius), levels=levels)
    return replace(Weighted.of_radii(norm, torch.from_numpy(_array_in(Path(path)).astype(np.float64))), levels=levels)


def check_targets(path: str | None, attacks: Sequence[str]) -> None:
    """Raise BadInput for a file of targets that is not there, or that no attack asks for; None is none."""
    if path is None:
        return
    if not any(name.startswith(AIMING) for name in attacks):
        raise BadInput(f"targets are given, and no attack drives images to them: add {AIMING} to the attacks")
    if not Path(path).is_file():
        raise BadInput(f"there is no file of targets {path}")


def aimed(images: Batch | OnDemand, path: str | None, classes: Sequence[str]) -> Batch | OnDemand:
    """Return the images with the classes that a file gives them, in order; None gives none.

    path: of a .npy of whole numbers, or of a text with a class a line, by number or by name. Raises BadInput.
    """
    if path is None:
        return images
    targets = _targets_in(Path(path), classes)
    if len(targets) < len(images.labels):
        raise BadInput(f"{path} has {len(targets)} targets for {number_of(len(images.labels))}")
    targets = targets[: len(images.labels)]
    return images._replace(targets=targets) if isinstance(images, Batch) else replace(images, targets=targets)


def _targets_in(path: Path, classes: Sequence[str]) -> Tensor:
    if path.suffix == ".npy":
        array = _array_in(path)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise BadInput(f"{path} must hold whole numbers (N,), not {array.dtype} of shape {array.shape}")
        return torch.from_numpy(array.astype(np.int64))
    try:
        lines = lines_of(path.read_text(encoding="utf-8-sig"), path)
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path}: {error}; write a class a line, by number or by name") from error
    return torch.tensor([_class_of(line, classes, path) for line in lines], dtype=torch.int64, device="cpu")


def _class_of(text: str, classes: Sequence[str], path: Path) -> int:
    if (often := list(classes).count(text)) > 1:
        raise BadInput(f"{path} names a class '{text[:40]}', and {often} are called so: write its number")
    if often:
        return list(classes).index(text)
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise BadInput(f"{path} names a class '{text[:40]}' that the data have not.{nearest(text, classes)}")


def _array_in(path: Path) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"cannot read {path}: {error}; write it by numpy.save") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iuf":
        raise BadInput(f"{path} must hold one array of numbers, as numpy.save writes it")
    return found
