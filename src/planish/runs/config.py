"""The one configuration tree: Experiment <-> TOML, coerced by annotations, unknown keys refused."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from planish.core.arguments import seed_of, shown
from planish.core.errors import BadInput, between, refuse_unknown
from planish.core.threat import ThreatModel
from planish.core.threat_texts import parse_threat
from planish.data.batches import Augmentation, check_resolutions, sides
from planish.data.images import Stream
from planish.methods import Method
from planish.registry import called_now, made, make
from planish.storage.reading import read_headed, read_toml, toml_of
from planish.training.collapse import OFF, Guard
from planish.training.settings import Settings

LARGEST_SIDE = 16384
"""Pixels."""
NEEDED = ("__call__", "second_order", "replays")
"""What every training asks a method for."""


@dataclass(frozen=True)
class DataOptions:
    """Which images. source: a registered name, or a path. limit: only the first so many training images.

    validation: images held out from training, by seed. augmentation: crop (padding in pixels), flip, cutout
    (side in pixels). size: pixels that image files are brought to, in training a random part, else the centre.
    resolutions: (share of the training, pixels) from which on another size is trained at; validation and tests are
    then at size, or at the last of them. stream: see `Listing.kept`. workers: processes that decode streamed
    images. skip_corrupt: leave unreadable images out and name them in the run's record.
    """

    source: str = "digits"
    limit: int | None = None
    validation: int = 0
    crop: int = 0
    flip: bool = False
    cutout: int = 0
    size: int | None = None
    resolutions: tuple[tuple[float, int], ...] = ()
    stream: Stream = "auto"
    workers: int | None = None
    skip_corrupt: bool = False

    def __post_init__(self) -> None:
        between(1, 2**63, **{"data.limit": self.limit})
        between(1, LARGEST_SIDE, **{"data.size": self.size})
        between(0, LARGEST_SIDE, **{"data.crop": self.crop, "data.cutout": self.cutout})
        between(0, 2**63, **{"data.validation": self.validation})
        between(0, 1024, **{"data.workers": self.workers})
        check_resolutions(self.resolutions)

    @property
    def final_size(self) -> int | None:
        """The size of validation and test images; None = their own."""
        return self.resolutions[-1][1] if self.resolutions and self.size is None else self.size

    def sides(self, epochs: int) -> tuple[int, ...]:
        """Return the size of each epoch's training images; none if it is their own. Raises BadInput."""
        whole = () if self.size is None else ((0.0, self.size),)
        return tuple(sides(self.resolutions or whole, epochs))

    @property
    def augmentation(self) -> Augmentation:
        """What is done to training images at random."""
        return Augmentation(self.crop, self.flip, self.cutout)


@dataclass(frozen=True)
class ThreatOptions:
    """norm: "Linf" or "L2". radius: in pixels of [0, 1], also as "8/255"."""

    norm: str = "Linf"
    radius: str | float = "8/255"

    @property
    def model(self) -> ThreatModel:
        """The threat model."""
        return parse_threat(self.norm, self.radius)


@dataclass(frozen=True)
class Named:
    """A component by name with its options. weights: of a model, a file or run folder that training starts from."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None


@dataclass(frozen=True)
class Experiment:
    """One training run, completely: the resolved TOML of a run folder is exactly this."""

    data: DataOptions = DataOptions()
    model: Named = Named("small-cnn")
    method: Named = Named("planish-at")
    threat: ThreatOptions = ThreatOptions()
    settings: Settings = Settings()
    guard: Guard = OFF
    seed: int = 0

    def __post_init__(self) -> None:
        seed_of(self.seed)

    @cached_property
    def training_method(self) -> Method:
        """The method with its options. Raises BadInput."""
        return method_of(self.method.name, self.method.options)


def method_of(method: object, options: Mapping[str, Any] = MappingProxyType({})) -> Method:
    """Return a method, or the one of a name with these options. Raises BadInput for what cannot be trained with."""
    own = make("methods", method, options) if isinstance(method, str) else method
    missing = [name for name in NEEDED if isinstance(own, type) or not hasattr(own, name)]
    if missing and isinstance(method, str):
        raise BadInput(
            f"'{method}' makes {shown(own)}, which is no method: it has no {missing[0]}; derive its class from "
            "planish.methods.Plain and give it __call__(model, batch, threat, context)"
        )
    if missing:
        hint = f"; call the class: {own.__name__}()" if isinstance(own, type) else ""
        raise BadInput(f'a method is a name such as "seat" or planish.methods.SEAT(), not {shown(own)}{hint}')
    return own  # type: ignore[return-value]


SECTIONS: dict[str, type] = {"data": DataOptions, "threat": ThreatOptions, "settings": Settings, "guard": Guard}
NAMED = ("model", "method")


def experiment_from(tree: Mapping[str, Any]) -> Experiment:
    """Return the experiment of a configuration tree, its method and threat tried. Raises BadInput."""
    experiment = parsed(tree)
    _ = experiment.training_method, experiment.threat.model
    return experiment


def parsed(tree: Mapping[str, Any]) -> Experiment:
    """Return the experiment of a configuration tree; no code that it may name is run. Raises BadInput."""
    keys = [f"{name}.{part.name}" for name, kind in SECTIONS.items() for part in fields(kind)]
    refuse_unknown(tree, [*SECTIONS, *NAMED, "seed"], "the configuration", keys)
    for name in (*SECTIONS, *NAMED):
        if not isinstance(tree.get(name, {}), Mapping):
            raise BadInput(f"'{name}' is a table: write [{name}] or {name}.key = value")
    sections: dict[str, Any] = {
        name: made(kind, tree.get(name, {}), f"[{name}]", keys) for name, kind in SECTIONS.items()
    }
    named: dict[str, Any] = {name: _named(name, tree[name]) for name in NAMED if name in tree}
    return Experiment(**sections, **named, seed=tree.get("seed", 0))


def _named(section: str, table: Mapping[str, Any]) -> Named:
    if not isinstance(table.get("name"), str):
        raise BadInput(f'[{section}] needs a name, for instance name = "{getattr(Experiment(), section).name}"')
    options = {key: value for key, value in table.items() if key != "name"}
    weights = options.pop("weights", None) if section == "model" else None
    if not isinstance(weights, str | None):
        raise BadInput(f"model.weights = {weights!r} is wrong: give a run folder or a file of weights")
    return Named(table["name"], options, weights)


def read(path: Path) -> dict[str, Any]:
    """Return the configuration tree of a TOML file, the method by its present name. Raises BadInput."""
    return _named_now(read_toml(path))


def written(path: Path) -> dict[str, Any]:
    """Return the configuration tree of a run folder's TOML, the method by its present name. Raises BadInput."""
    return _named_now(read_headed(path))


def _named_now(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree of a file, which an earlier planish may have written, with its method's present name."""
    own = tree.get("method")
    named = isinstance(own, Mapping) and isinstance(own.get("name"), str)
    return tree | ({"method": {**own, "name": called_now("methods", own["name"])}} if own and named else {})


def overlaid(base: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base's configuration tree with another over it, table by table; a method replaces the whole method."""
    whole = dict(base)
    for key, value in tree.items():
        under = whole.get(key)
        whole[key] = {**under, **value} if isinstance(under, dict) and key != "method" else value
    return whole


def override(tree: Mapping[str, Any], assignment: str) -> dict[str, Any]:
    """Return the tree with "a.b=c" applied; c is a TOML value, or else a text. Raises BadInput."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise BadInput(f"'{assignment}' is not an override; write key=value, for instance settings.epochs=10")
    *tables, last = key.strip().split(".")
    result = {name: dict(value) if isinstance(value, Mapping) else value for name, value in tree.items()}
    place: dict[str, Any] = result
    for table in tables:
        place = place.setdefault(table, {})
        if not isinstance(place, dict):
            raise BadInput(f"'{assignment}': '{table}' is a value, not a table")
    place[last] = _value(text.strip())
    return result


def _value(text: str) -> Any:
    try:
        return toml_of(f"value = {text}")["value"]
    except (ValueError, KeyError):
        return text


def difference(one: Experiment, other: Experiment) -> str:
    """Return the first key whose value differs, and both values; "" where the two are the same."""
    for section in fields(Experiment):
        both = [getattr(each, section.name) for each in (one, other)]
        tables = [_table(each) if is_dataclass(each) else {"": each} for each in both]
        for key in {**tables[0], **tables[1]}:
            first, second = (table.get(key) for table in tables)
            if first != second:
                return f"{section.name}.{key}".rstrip(".") + f" is {first!r} there and {second!r} here"
    return ""


def experiment_of(config: Path | None, named: Mapping[str, Any], overrides: Iterable[str]) -> Experiment:
    """Return the experiment of a TOML file, or the default one, with named values (None = not given) and overrides.

    Raises BadInput.
    """
    tree: dict[str, Any] = {name: {"name": getattr(Experiment(), name).name} for name in NAMED}
    tree |= read(config) if config else {}
    for key, value in named.items():
        if value is not None:
            tree = override(tree, f"{key}={json.dumps(value)}")
    for assignment in overrides:
        tree = override(tree, assignment)
    return experiment_from(tree)


def to_toml(experiment: Experiment) -> str:
    """Return the experiment as TOML, every default written out."""
    parts = {section.name: getattr(experiment, section.name) for section in fields(experiment)}
    return tables_text({name: _table(value) if is_dataclass(value) else value for name, value in parts.items()})


def tables_text(tree: Mapping[str, Any]) -> str:
    """Return values and tables as TOML, the values first, None left out."""
    tables = {key: value for key, value in tree.items() if isinstance(value, Mapping)}
    lines = _lines({key: value for key, value in tree.items() if key not in tables})
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_lines(table)]
    return "\n".join(lines) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_literal(entry)}" for key, entry in table.items() if entry is not None]


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _table(value: Any) -> dict[str, Any]:
    """Return a section's keys and values, options among them."""
    table: dict[str, Any] = {item.name: getattr(value, item.name) for item in fields(value)}
    options: dict[str, Any] = table.pop("options", {})
    return table | options


def _literal(entry: Any) -> str:
    """Return the entry in TOML, which is JSON without surrogate pairs, with DEL escaped and other names of infinity."""
    if isinstance(entry, float) and not math.isfinite(entry):
        return str(entry)
    return json.dumps(entry, ensure_ascii=False).replace("\x7f", "\\u007f")
