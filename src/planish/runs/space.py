"""What a sweep searches: KEY=KIND(VALUES) parsed, and each of its experiments put together and tried beforehand."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, get_args

import torch

from planish.core.arguments import seed_of
from planish.core.errors import BadInput, at_least, nearest, one_of
from planish.data.source import check_there
from planish.evaluation.naming import attacks_of
from planish.runs.config import Experiment, experiment_from, override
from planish.runs.judge import SOME_CLASSES
from planish.runs.run import architecture

Kind = Literal["log", "uniform", "int", "choice", "grid"]
Objective = Literal["robust-accuracy", "both"]
ROW = "row"
"""The key by which a sweep of several recipes chooses one of them."""
FIXED = ("data.source", "data.limit", "data.validation", "data.size", "threat", "seed")
"""What all trials share: they are judged on the same images at one threat."""
TRIALS = 20
"""As many as are tried where neither a number nor a grid says how many."""
EXAMPLE = "write KEY=log(0.1,10), uniform(0,1), int(1,3), choice(relu,gelu) or grid(0.1,0.3)"


@dataclass(frozen=True)
class Dimension:
    """A key of the configuration and the values that it may take.

    kind: "log", "uniform" and "int" have a least and a largest value, "choice" and "grid" a value each, as text.
    """

    key: str
    kind: Kind
    values: tuple[Any, ...]

    def __str__(self) -> str:
        """Write it as it is given."""
        return f"{self.key}={self.kind}({','.join(map(str, self.values))})"


def dimension(text: str) -> Dimension:
    """Return the dimension of a text such as "method.linearity_weight=log(0.1,10)". Raises BadInput."""
    found = re.fullmatch(r"\s*([\w.-]+)\s*=\s*(\w+)\s*\((.*)\)\s*", text)
    if found is None:
        raise BadInput(f"--space '{text}' is wrong: {EXAMPLE}")
    key, kind, inner = found.groups()
    if kind not in get_args(Kind):
        raise BadInput(f"--space '{text}': there is no '{kind}'.{nearest(kind, get_args(Kind))} {EXAMPLE}")
    if any(key == own or key.startswith(f"{own}.") for own in FIXED):
        raise BadInput(
            f"--space '{text}': trials are judged on the same images at one threat, so {key} stays; --set it"
        )
    values = [part.strip() for part in inner.split(",") if part.strip()]
    if kind in ("choice", "grid"):
        if not values or len(set(values)) < len(values):
            raise BadInput(f"--space '{text}': name each value once, for instance {kind}(0.1,0.3)")
        return Dimension(key, kind, tuple(values))  # type: ignore[arg-type]
    return Dimension(key, kind, _ends(text, kind, values))  # type: ignore[arg-type]


def _ends(text: str, kind: str, values: Sequence[str]) -> tuple[float, float]:
    """Return the least and the largest value of a range. Raises BadInput."""
    number = int if kind == "int" else float
    try:
        low, high = map(number, values)
    except ValueError:
        whole = "two whole numbers" if kind == "int" else "two numbers"
        raise BadInput(f"--space '{text}': {kind} takes {whole}, the least and the largest") from None
    if not -1e18 < low < high < 1e18 or (kind == "log" and low <= 0):
        above = "above 0, " if kind == "log" else ""
        raise BadInput(f"--space '{text}': {kind} takes two numbers, {above}the smaller one first")
    return low, high


@dataclass(frozen=True)
class Sweep:
    """A search for good values: what a trial trains, how it is judged, and how many there are.

    recipes: configuration trees by name, of which ROW chooses; "" = the only one. objective: "robust-accuracy", or
    "both" clean and robust accuracy, for which no trial is pruned. attacks: what the held-out images are judged by.
    trials: None = each point of a grid, else `TRIALS`. seed: of the search.
    Raises BadInput.
    """

    recipes: Mapping[str, Mapping[str, Any]]
    space: tuple[Dimension, ...]
    objective: Objective = "robust-accuracy"
    attacks: tuple[str, ...] = ("planish-suite",)
    trials: int | None = None
    seed: int = 0
    points: tuple[dict[str, Any], ...] = field(init=False)

    def __post_init__(self) -> None:
        one_of(get_args(Objective), **{"--objective": self.objective})
        at_least(1, **{"--trials": self.trials})
        seed_of(self.seed)
        if not self.attacks:
            raise BadInput("no attack is named; see: planish list attacks")
        keys, grids = [own.key for own in self.space], [own for own in self.space if own.kind == "grid"]
        if not keys:
            raise BadInput(f"a sweep needs a --space to search: {EXAMPLE}")
        if doubled := next((key for key in keys if keys.count(key) > 1), None):
            raise BadInput(f"--space names {doubled} twice: give all of its values at once")
        if grids and len(grids) < len(keys):
            other = next(own for own in self.space if own.kind != "grid")
            raise BadInput(f"--space '{other}' is no grid, and others are: make all of them grids, or none")
        every = product(*(own.values for own in grids)) if grids else ()
        object.__setattr__(self, "points", tuple(dict(zip(keys, values, strict=True)) for values in every))

    @property
    def most(self) -> int:
        """How many trials there are."""
        return min(self.trials or len(self.points), len(self.points)) if self.points else self.trials or TRIALS

    def experiment(self, values: Mapping[str, Any]) -> Experiment:
        """Return what the trial with these values trains. Raises BadInput."""
        tree: Mapping[str, Any] = self.recipes[str(values.get(ROW, ""))]
        for key, value in values.items():
            if key != ROW:
                tree = override(tree, f"{key}={value}")
        return experiment_from(tree)

    def check(self) -> None:
        """Try the ends of every dimension, the data and the attacks, before anything is trained. Raises BadInput."""
        first = {own.key: own.values[0] for own in self.space}
        found = [(own, self.experiment({**first, own.key: value})) for own in self.space for value in own.values]
        for own, experiment in found:
            _buildable(own, experiment)
        experiments = [experiment for _, experiment in found]
        shared = {(one.data.source, one.data.limit, one.data.validation, one.seed, one.threat) for one in experiments}
        if len(shared) > 1:
            raise BadInput("the recipes differ in data, threat or seed: a sweep judges all on the same images")
        if not experiments[0].data.validation:
            raise BadInput(
                "a sweep judges on images held out from training, never on test images: hold some out, "
                "for instance --set data.validation=1000"
            )
        check_there(experiments[0].data.source, "train")
        attacks_of([*self.attacks], SOME_CLASSES, norm=experiments[0].threat.model.name)

    def first(self) -> Experiment:
        """Return what a trial with the first value of every key trains. Raises BadInput."""
        return self.experiment({own.key: own.values[0] for own in self.space})

    def definition(self) -> dict[str, Any]:
        """Return what makes it this sweep, JSON-able; more trials go on with the same one."""
        space = [str(own) for own in self.space]
        named = {"space": space, "objective": self.objective, "attacks": [*self.attacks], "seed": self.seed}
        whole: dict[str, Any] = json.loads(json.dumps({**named, "recipes": self.recipes}))
        return whole


def _buildable(own: Dimension, experiment: Experiment) -> None:
    """Raise BadInput if a model's option is wrong: nothing is allocated."""
    model = experiment.model
    if own.key.startswith("model.") and ":" not in model.name:
        with torch.device("meta"):
            architecture(model.name, model.options, SOME_CLASSES, 3)
