"""A model on common corruptions, into its evaluation's folder."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from planish.core.arguments import logits_of
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.data.classes import classes_of, matched, numbered_as
from planish.data.corruptions import CorruptedSet, corrupted_sets
from planish.data.images import Images
from planish.data.source import expanded
from planish.records.corruptions import RECORD, SCHEMA_VERSION, Corruptions, check_baseline, load, save
from planish.records.origin import model_digest, provenance
from planish.records.statistics import Booleans
from planish.runs.judge import EvaluationConfig, LoadedModel
from planish.storage.reading import content_of, document_digest

STEP = 2048
"""Images that are turned into floating numbers at once."""


@dataclass(frozen=True)
class CommonCorruptions:
    """Corrupted test images of a folder, and what errors are divided by. Raises BadInput at once for either."""

    folder: Path
    sets: Sequence[CorruptedSet]
    baseline: dict[str, float] | None

    @classmethod
    def found(cls, folder: Path, baseline: Path | None = None) -> "CommonCorruptions":
        """Look into the folder. baseline: a file of {corruption: mean error in [0, 1]}, .json or .toml."""
        sets = corrupted_sets(expanded(folder))
        by_name: dict[str, set[int]] = {}
        for one in sets:
            by_name.setdefault(one.corruption, set()).add(one.severity)
        if len({frozenset(severities) for severities in by_name.values()}) > 1:
            raise BadInput(f"'{folder}' has other severities for one corruption than for another; complete them")
        errors = None if baseline is None else baseline_of(baseline)
        check_baseline(errors, tuple(by_name))
        return cls(folder, sets, errors)

    @property
    def names(self) -> tuple[str, ...]:
        """The corruptions."""
        return tuple(dict.fromkeys(one.corruption for one in self.sets))


def baseline_of(path: Path) -> dict[str, float]:
    """Return a baseline's mean error by corruption, from a .json or .toml file. Raises BadInput."""
    form = 'a table of mean errors above 0, at most 1, such as {"fog": 0.82}, as .json or .toml'
    try:
        text = content_of(path).decode()
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"cannot read the baseline '{path}' ({error}); give {form}") from None
    if not isinstance(found, Mapping) or not found or not all(_is_error(value) for value in found.values()):
        raise BadInput(f"the baseline '{path}' is no such thing: give {form}")
    return {str(name): float(value) for name, value in found.items()}


def _is_error(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def measure_into(
    judged: LoadedModel,
    task: EvaluationConfig,
    folder: Path,
    common: CommonCorruptions,
    device: torch.device | str = "cpu",
) -> Iterator[Corruptions]:
    """Classify the corrupted images: yield the record after each corruption, saved by then.

    task: limit (of each set), size and classes are used. What the folder's record holds of the same weights, images,
    classes and folder of corruptions is not classified again. Raises BadInput where sets differ in their number of
    images.
    """
    asked = {"limit": task.limit, "size": task.size, "folder": str(common.folder)}
    asked |= {} if task.classes is None else {"classes": document_digest({"classes": classes_of(task.classes)})}
    meta: dict[str, Any] = {"model": {"name": judged.name, "digest": model_digest(judged.model)}, "asked": asked}
    severities = tuple(dict.fromkeys(one.severity for one in common.sets))
    earlier = _earlier(folder / RECORD, meta, severities)
    done = {} if earlier is None else dict(zip(earlier.names, earlier.correct, strict=True))
    notes = [] if earlier is None else [*earlier.meta.get("notes", [])]
    meta |= {"schema_version": SCHEMA_VERSION, "data": {"name": common.folder.resolve().name}, **provenance(device)}
    for number, name in enumerate(common.names, 1):
        if name not in done:
            own = [one for one in common.sets if one.corruption == name]
            done[name] = _stack(name, [_classified(one, judged, task, device, notes) for one in own])
        names = common.names[:number]
        baseline = common.baseline if number == len(common.names) else None  # it must name all, and is said at the end
        told = {**meta, "baseline": baseline, "notes": list(dict.fromkeys(notes))}
        record = Corruptions(names, severities, _stack(name, [done[one] for one in names]), told)
        save(record, folder / RECORD)
        yield record


def _earlier(path: Path, about: Mapping[str, Any], severities: tuple[int, ...]) -> Corruptions | None:
    """Return a record of the same model, images and severities, if it is there."""
    if not path.exists():
        return None
    known = load(path)
    same = all(known.meta.get(key) == value for key, value in about.items())
    return known if same and known.severities == severities else None


def _stack(name: str, parts: Sequence[Booleans]) -> Booleans:
    if len({part.shape for part in parts}) > 1:
        raise BadInput(
            f"{name}: the sets have {', '.join(str(part.shape[-1]) for part in parts)} images; they must agree"
        )
    found: Booleans = np.stack(parts)
    return found


def _classified(
    one: CorruptedSet, judged: LoadedModel, task: EvaluationConfig, device: torch.device | str, notes: list[str]
) -> Booleans:
    """Return which images (N,) are classified correctly."""
    about: dict[str, Any] = judged.about
    images = one.read(task.limit, about.get("size") if task.size is None else task.size)
    images = images.in_channels(about.get("channels", 1))
    if task.classes is None:
        images, told = matched(images, about.get("classes", images.classes))
        notes += [line.replace(images.name, "a set") for line in told]
    else:
        images = numbered_as(images, task.classes)
    return _right(images.to(device), judged)


def _right(images: Images, judged: LoadedModel) -> Booleans:
    """Classify the images, as many at a time as is usual; a tie is wrong, as everywhere."""
    found = []
    for start in range(0, len(images), STEP):
        batch = images.take(range(start, min(start + STEP, len(images)))).as_batch()
        found.append((margin(logits_of(judged.model, batch.x), batch.labels) < 0).cpu().numpy())
    right: Booleans = np.concatenate(found)
    return right
