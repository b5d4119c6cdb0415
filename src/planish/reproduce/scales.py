"""Scales: how far a paper's experiment is cut down, by stated rules."""

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

from planish.core.errors import BadInput, nearest
from planish.core.modes import Precision
from planish.core.words import number_of
from planish.registry import made
from planish.reproduce.tables import Measure, PaperColumn, PaperTable
from planish.runs.config import Experiment, Named

LIMITS = {
    "images": "training images",
    "epochs": "epochs",
    "batch_size": "images a batch",
    "test_images": "test images",
    "steps": "attack steps",
    "restarts": "restarts",
    "queries": "queries of random search",
}
"""What a scale has at most, in words."""


@dataclass(frozen=True)
class Scale:
    """What a table is cut down to; None and 1 = as in the paper.

    images: the first so many training images. epochs, batch_size, test_images: at most. width_divisor: of the width
    of every network, of a Wide-ResNet's factor. blocks_divisor: of a stage's blocks, rounded up; other than 1 makes
    every ResNet a ResNet-18. side: larger images are brought to so many pixels. precision: of training and of the
    attacks' search. steps, restarts, queries: at most, of the attacks. instead: attacks that stand for others.
    validation: training images held out and judged after each epoch. snapshots: the weights are kept every so many
    epochs, 0 = never. seeds: how many seeds a row is trained with; these rows come first, in this order. options:
    hyper-parameters of rows' methods that are others at this scale. beside: what is measured in the ball of every row,
    beside the table's columns.
    """

    name: str = "full"
    images: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    test_images: int | None = None
    width_divisor: int = 1
    blocks_divisor: int = 1
    side: int | None = None
    precision: Precision = "float32"
    steps: int | None = None
    restarts: int | None = None
    queries: int | None = None
    instead: dict[str, str] = field(default_factory=dict)
    validation: int | None = None
    snapshots: int = 0
    seeds: dict[str, int] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    beside: tuple[Measure, ...] = ()

    def runs(self, row: str) -> tuple[str, ...]:
        """Return the names of a row's trainings, one a seed: "seat", "seat.seed-1", ...; of one such: itself."""
        return (row,) if SEED in row else (row, *(f"{row}{SEED}{seed}" for seed in range(1, self.seeds.get(row, 1))))

    def words(self) -> str:
        """Say what is cut down."""
        if self.name == "full":
            return "the paper's own setting"
        limits = [(getattr(self, name), what) for name, what in LIMITS.items()]
        said = [f"at most {n:,} {what if n > 1 else what.rstrip('s')}" for n, what in limits if n is not None]
        divisors = {"width": self.width_divisor, "blocks of a stage": self.blocks_divisor}
        said += [f"{what} divided by {value}" for what, value in divisors.items() if value > 1]
        said += [] if self.side is None else [f"images of at most {self.side} pixels"]
        said += [] if self.validation is None else [f"{number_of(self.validation, 'training image')} held out"]
        said += [f"search and training in {self.precision}"] if self.precision != "float32" else []
        said += [f"{other} in place of {own}" for own, other in self.instead.items()]
        return ", ".join(said)


CHEAPER = {"autoattack": "planish-suite", "paper-finlay": "closest", "carlini-wagner": "carlini-wagner-60-8"}
"""The first is within 0.1 points, the second within 0.5 % of the least known distance where measured
(docs/results.md); the third overstates distances by 13 to 20 % there."""
SEED = ".seed-"
"""What parts a row's name from the seed of another of its trainings."""
_CUT = Scale(batch_size=128, precision="bf16", instead=CHEAPER)
_LINEARITY: tuple[Measure, ...] = ("gamma", "linearity-error")
_QUARTER = replace(_CUT, width_divisor=4, blocks_divisor=4, side=32)
SCALES = {
    "full": Scale(),
    "gpu": replace(
        replace(_CUT, name="gpu", epochs=15, test_images=1000, side=128, steps=50, restarts=2, queries=2000),
        beside=_LINEARITY,
    ),
    "small": replace(
        replace(_QUARTER, name="small", epochs=30, test_images=2000, validation=2000, snapshots=2),
        instead={**CHEAPER, "pgd-margin-50-10": "pgd-margin-50-1"},
        beside=_LINEARITY,
    ),
    "cpu": replace(_QUARTER, name="cpu", images=12000, epochs=8, test_images=500, steps=20, restarts=1, queries=1000),
}


def scale_of(table: PaperTable, name: str) -> Scale:
    """Return the scale of that name for the table, whose own numbers come first. Raises BadInput."""
    for known in (name, *table.scales):
        if known not in SCALES:
            raise BadInput(f"unknown scale '{known}'.{nearest(known, SCALES)} Known: {', '.join(SCALES)}")
    own: dict[str, Any] = table.scales.get(name, {})
    checked: Scale = made(Scale, own, f"[scales.{name}] of {table.name}")
    used = {column.attack for column in table.columns.values()}
    instead = {attack: other for attack, other in SCALES[name].instead.items() if attack in used}
    return replace(SCALES[name], **{"instead": instead, **{key: getattr(checked, key) for key in own}})


def scaled(experiment: Experiment, scale: Scale, source: str | None = None) -> Experiment:
    """Return the experiment cut down to the scale, on the data `source`. Raises BadInput."""
    if scale.name == "full" and source is None:
        return experiment
    data, settings = experiment.data, experiment.settings
    held_out = data.validation if scale.validation is None else scale.validation
    data = replace(data, source=source or data.source, limit=_least(scale.images, data.limit), validation=held_out)
    if scale.side is not None and max(data.sides(settings.epochs), default=0) > scale.side:
        data = replace(data, size=scale.side, resolutions=())
    settings = replace(
        settings,
        epochs=_least(scale.epochs, settings.epochs) or settings.epochs,
        batch_size=_least(scale.batch_size, settings.batch_size) or settings.batch_size,
        precision=settings.precision if scale.precision == "float32" else scale.precision,
    )
    return replace(experiment, data=data, settings=settings, model=_smaller(experiment.model, scale))


def _least(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)


def _smaller(model: Named, scale: Scale) -> Named:
    options = dict(model.options)
    family, numbers = split_name(model.name)
    if family == "wide-resnet" and len(numbers) == 2:
        numbers = [_depth(numbers[0], scale), max(1, numbers[1] // scale.width_divisor)]
    elif family == "resnext" and len(numbers) == 3:
        numbers = [_depth(numbers[0], scale), numbers[1], max(1, numbers[2] // scale.width_divisor)]
    elif scale.width_divisor > 1 and ":" not in model.name:
        options["width"] = max(1, options.get("width", 32 if family == "small-cnn" else 64) // scale.width_divisor)
    if family == "resnet":
        numbers = [18] if scale.blocks_divisor > 1 else numbers
        if scale.side is not None and options.get("size", 32) > scale.side:
            options["size"] = 32 if scale.side < 224 else 224
    return Named("-".join([family, *map(str, numbers)]), options)


def split_name(name: str) -> tuple[str, list[int]]:
    """Return a component's name without its numbers, and these; preact-resnet-18 is a name as it is."""
    if name.startswith("preact-resnet") or name.startswith("vgg"):
        return name, []
    family, numbers = re.fullmatch(r"(.*?)((?:-\d+)*)", name).groups()  # type: ignore[union-attr]
    return family, [int(number) for number in numbers.split("-") if number]


def _depth(depth: int, scale: Scale) -> int:
    return 6 * math.ceil((depth - 4) / 6 / scale.blocks_divisor) + 4


def scaled_attack(name: str, scale: Scale) -> str:
    """Return the attack's name with its numbers cut down, or of the attack that stands for it at this scale."""
    if name in scale.instead:
        return scale.instead[name]
    family, numbers = split_name(name)
    if "/" in name or not numbers:
        return name
    limits = [scale.queries] if family == "square" else [scale.steps, scale.restarts]
    limits += [None] * len(numbers)
    cut = [min(number, number if limit is None else limit) for number, limit in zip(numbers, limits, strict=False)]
    return "-".join([family, *map(str, cut)])


def attack_of(column: PaperColumn, scale: Scale) -> str | None:
    """Return the attack that measures the column at this scale; None if none does."""
    if column.attack is None or column.measure == "missing":
        return None
    if column.by_distance:
        return scale.instead.get(column.attack, column.attack)
    return scaled_attack(column.attack, scale)


def images_judged(table: PaperTable, scale: Scale) -> int | None:
    """Return how many test images the rows are judged on; None = all."""
    return _least(scale.test_images, table.head.images)
