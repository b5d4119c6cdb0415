"""A small version of every registered attack, and the norms that each one knows."""

import inspect
from typing import Any

from sketch import sketches

from planish.attacks import Attack, Within
from planish.core.threat import L2, Linf, ThreatModel
from planish.registry import components, make

CLASSES = 4
KNOWN = {"classes": CLASSES, "surrogates": sketches(CLASSES)}
FEW = KNOWN | {"steps": 3, "restarts": 2, "targets": 2, "queries": 40, "samples": 5, "searches": 2}
"""Few of everything, where an attack has such options; distance attacks need some more to get anywhere, some most."""
FEW_FAR = {"steps": 8, "rounds": 4, "outer": 3, "inner": 12, "queries": 60}
SLOW = {name: {"steps": 12, "outer": 4, "inner": 20} for name in ("ddn", "carlini-wagner-linf")}
BALLS: list[ThreatModel] = [Linf(0.1), L2(0.6)]
"""Some of the eight images of `known` can be broken in them, and some cannot."""
ONLY = {"ddn": "L2", "carlini-wagner": "L2", "carlini-wagner-linf": "Linf"}
"""Attacks that know one norm only."""
NAMES = sorted(components("attacks"))
PAIRS = [(name, threat) for name in NAMES for threat in BALLS]
DEFINED = [(name, threat) for name, threat in PAIRS if ONLY.get(name, threat.name) == threat.name]
UNDEFINED = [pair for pair in PAIRS if pair not in DEFINED]


def named(value: str | ThreatModel) -> str:
    """Return the id of a parameter."""
    return value if isinstance(value, str) else value.name


def made(name: str, wanted: dict[str, Any]) -> object:
    """Return the attack with what it takes of the wanted options."""
    takes = inspect.signature(components("attacks")[name]).parameters
    return make("attacks", name, {key: value for key, value in wanted.items() if key in takes})


FAR = [name for name in NAMES if hasattr(made(name, KNOWN), "distances")]
"""Distance attacks."""


def few(name: str, **options: int) -> Any:
    """Return the attack with few steps and restarts."""
    return made(name, FEW | (FEW_FAR if name in FAR else {}) | SLOW.get(name, {}) | options)


def small(name: str, **options: int) -> Attack:
    """Return the attack with few steps and restarts, a distance attack as an attack in a ball."""
    attack = few(name, **options)
    return Within(attack) if name in FAR else attack
