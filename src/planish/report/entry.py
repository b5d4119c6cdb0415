"""What a report is made of: one entry per trained model, and how its numbers are worded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from planish.core.errors import BadInput
from planish.records.evaluation import Evaluation
from planish.records.statistics import Estimate


class Training(TypedDict):
    """Training's cost: passes relative to standard training (counted), wall seconds, a record per epoch."""

    passes: NotRequired[float]
    seconds: NotRequired[float]
    relative_seconds: NotRequired[float]
    history: NotRequired[list[dict[str, Any]]]


class Gallery(TypedDict):
    """A few images: ``clean`` and ``adversarial`` (M,C,H,W) in [0,1], C = 1 or 3; the rest (M,) integers."""

    clean: NDArray[Any]
    adversarial: NDArray[Any]
    labels: NDArray[Any]
    predicted_clean: NDArray[Any]
    predicted_adv: NDArray[Any]
    indices: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Entry:
    """One model in a report. ``accuracy_by_radius`` lists (radius in pixels of [0,1], accuracy in [0,1])."""

    name: str
    evaluation: Evaluation
    training: Training | None = None
    images: Gallery | None = None
    accuracy_by_radius: list[tuple[float, float]] | None = None

    def __post_init__(self) -> None:
        if self.images is None:
            return
        clean, adversarial = self.images["clean"], self.images["adversarial"]
        if clean.ndim != 4 or clean.shape[1] not in (1, 3) or clean.shape != adversarial.shape:
            raise BadInput(
                f"The gallery of '{self.name}' needs clean and adversarial images of one shape"
                f" (M, 1 or 3, H, W), got {clean.shape} and {adversarial.shape}."
            )

    @property
    def size(self) -> int:
        """How many images were evaluated."""
        return int(self.evaluation.indices.size)

    @property
    def passes(self) -> float | None:
        """Training passes relative to standard training, None = unknown."""
        return self.training.get("passes") if self.training else None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The training's records, one per epoch."""
        return self.training.get("history", []) if self.training else []

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """The guard's alarms while it was trained."""
        return [alarm for record in self.history for alarm in record.get("alarms", [])]

    def class_name(self, number: int) -> str:
        """The class's name if the data set has one, else its number."""
        return class_name(self.evaluation.classes, number)

    def final_margins(self) -> NDArray[np.float32]:
        """(N,) the largest margin that any attack reached, the clean one where none was tried."""
        columns = [column.margin for column in self.evaluation.columns]
        reached = np.fmax.reduce([np.full(self.size, np.nan, np.float32), *columns])
        wrong = ~self.evaluation.correct() | np.isnan(reached)
        return np.where(wrong, self.evaluation.clean_margin, reached)


def class_name(classes: Sequence[Any], number: int) -> str:
    """Return the name of a class if it has one, else its number."""
    return str(classes[number]) if 0 <= number < len(classes) else str(number)


def check(entries: Sequence[Entry]) -> None:
    """BadInput unless there are entries, their names differ and all were judged at one norm and radius."""
    if not entries:
        raise BadInput("A report needs at least one evaluation.")
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        raise BadInput(f"Each method in a report needs its own name, got {', '.join(names)}.")
    threats = list(dict.fromkeys(threat(entry.evaluation) for entry in entries))
    if len(threats) > 1:
        raise BadInput(f"A report compares models at one norm and radius, got {' and '.join(threats)}.")


def attack_names(entries: Sequence[Entry]) -> list[str]:
    """Every attack that was asked for on some entry, in the order of first appearance; a suite is one."""
    return list(dict.fromkeys(name for entry in entries for name in entry.evaluation.asked))


def threat(evaluation: Evaluation) -> str:
    """Word the threat, such as "Linf radius 8/255"."""
    return f"{evaluation.norm} radius {radius_text(evaluation.radius)}"


def radius_text(radius: float) -> str:
    """Write a radius the way papers do: 0.1, 8/255, 0.03137."""
    levels = 255 * radius
    if abs(radius - round(radius, 3)) > 1e-9 and abs(levels - round(levels)) < 1e-4:
        return f"{round(levels)}/255"
    return f"{radius:.4g}"


def images_text(entries: Sequence[Entry]) -> str:
    """Word how many images were judged, such as "500 images" or "200 to 500 images"."""
    sizes = sorted({entry.size for entry in entries})
    if sizes == [1]:
        return "1 image"
    return " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1]))) + " images"


def percent(estimate: Estimate) -> str:
    """Write a share with its 95 % interval, such as "84.2% [80.7, 87.1]"."""
    return f"{100 * estimate.value:.1f}% [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
