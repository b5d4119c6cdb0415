"""Entries with known numbers for the report's tests."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from planish.records.audit import Audit, Finding, Verdict
from planish.records.evaluation import Column, Evaluation
from planish.records.geometry import ByRadius, DistanceBounds, Effort, Geometry, Linearity, Pictures, Planes, Weights
from planish.report import Entry
from planish.report.tables import Gallery, Training

Make = Callable[..., Entry]


def evaluation(clean: int, after: dict[str, int], total: int, meta: dict[str, Any]) -> Evaluation:
    """The first ``clean`` images are right; after each attack the first ``after[attack]`` still stand."""
    order = np.arange(total)
    columns = []
    standing = clean
    for name, left in after.items():
        tried, held = order < standing, order < left
        margin = np.where(tried, np.where(held, -0.3, 0.4), np.nan).astype(np.float32)
        distance = np.where(tried, 0.1, np.nan).astype(np.float32)
        predicted = np.where(tried, np.where(held, order % 3, (order + 1) % 3), -1)
        target = np.full(total, -1)
        spent = np.where(tried, 13, -1)
        found = (target, np.where(tried, 0, -1), np.where(tried, 5, -1), spent)
        columns.append(Column(name, margin, distance, predicted, *found, 7 * standing, 6 * standing, 0.5))
        standing = left
    margin = np.where(order < clean, -1.0, 0.5).astype(np.float32)
    return Evaluation(order, order % 3, margin, order % 3, tuple(columns), meta)


@pytest.fixture(scope="session")
def make() -> Make:
    """Build an entry: ``make(name, clean, {"attack": still standing}, total=..., ...)``."""

    def build(name: str, clean: int, after: dict[str, int], total: int = 50, **more: Any) -> Entry:
        radius, classes = more.pop("radius", 0.1), more.pop("classes", ["cat", "dog", "eel"])
        meta: dict[str, Any] = {"schema_version": 1, "threat": {"norm": "Linf", "radius": radius}}
        meta |= {"data": {"name": "d", "classes": classes}, "clean": {"forwards": total, "seconds": 0.1}}
        meta |= {"command": f"planish evaluate {name}"}
        return Entry(name, evaluation(clean, after, total, meta), **more)

    return build


@pytest.fixture(scope="session")
def training() -> Training:
    """Two epochs, the second one diverged."""
    history = [{"epoch": 1, "loss": 2.0, "train_accuracy": 0.4}, {"epoch": 2, "loss": float("nan")}]
    return {"passes": 8.0, "seconds": 90.0, "relative_seconds": 7.5, "history": history}


@pytest.fixture(scope="session")
def images() -> Callable[[int], Gallery]:
    """Three images with this many channels."""

    def build(channels: int) -> Gallery:
        clean = np.random.default_rng(0).random((3, channels, 6, 6)).astype(np.float32)
        classes = np.arange(3)
        return {
            "clean": clean,
            "adversarial": np.clip(clean + 0.1, 0, 1),
            "labels": classes,
            "predicted_clean": classes,
            "predicted_adv": (classes + 1) % 3,
            "indices": classes + 10,
        }

    return build


HOSTILE = "<script>hacked=1</script><img src=x onerror=hacked=1>"


@pytest.fixture(scope="session")
def hostile(make: Make, training: Training, images: Callable[[int], Gallery]) -> list[Entry]:
    """Two models with names that want to be code; the first has pictures."""
    names = {"classes": [HOSTILE, "'\"></svg><script>hacked=1</script>", "{{ 7*7 }}|`x`"]}
    after = {"fgsm": 35, "apgd": 30}
    curve = [(0.0, 0.8), (0.1, 0.6), (0.3, 0.0)]
    first = make(HOSTILE, 40, after, training=training, images=images(3), accuracy_by_radius=curve, **names)
    return [first, make("https://example.org/a b", 38, after, training={"passes": 1.0, "seconds": 12.0}, **names)]


def finding(check: str, verdict: Verdict, statistic: float | None, *limits: float | None, **more: Any) -> Finding:
    """A finding in percent, as an audit makes them; limits: where it warns and fails."""
    return Finding(check, verdict, statistic, "%", *limits, **{"meaning": "It means this.", "advice": "", **more})


BREAKERS = (HOSTILE, "suite/scout")
MARGINS = [0.5, -0.3, -0.1, -2.0, -1.0, -0.2, *[0.6] * 4, *[-5.0] * 40]
BROKEN_BY = [-1, 0, 1, -1, -1, -1, *[-1] * 4, *[1] * 13, *[-1] * 27]


@pytest.fixture(scope="session")
def audit() -> Audit:
    """Fifty images, 45 right and 30 robust; a finding of each verdict and hostile words."""
    findings = (
        finding("random-starts", "pass", 0.5, 2, 5),
        finding("linearity", "open", None, 0.1, 0.3, advice="Give more passes."),
        finding("gradients", "warn", 7.0, 5, 10, evidence={"zero": list(range(90)), "deep": {"share": 0.07}}),
        finding(
            HOSTILE, "fail", 60.0, None, 99, meaning=f"Read {HOSTILE} | and [this](https://example.org).", advice="|"
        ),
    )
    meta: dict[str, Any] = {"schema_version": 1, "suite": "suite", "checks": 4, "seed": 3, "notes": [HOSTILE]}
    meta |= {"model": {"name": "a"}, "data": {"name": "d"}, "threat": {"norm": "Linf", "radius": 8 / 255}}
    meta |= {"command": "planish audit runs/a"}
    labels, margins = np.array([0, 0, 1, 2, 0, *[1] * 45]), np.array(MARGINS, np.float32)
    return Audit(findings, np.arange(10, 60), labels, margins, np.array(BROKEN_BY), BREAKERS, meta)


def drawn_portrait() -> Geometry:
    """Numbers of the first six images, five of them measured: the first is wrong when clean, two fell, three stand."""
    generator = np.random.default_rng(0)
    at = np.linspace(-0.15, 0.15, 5)
    clean = generator.random((4, 1, 6, 6)).astype(np.float32)
    rows = np.arange(1, 6)
    return Geometry(
        np.array([0, 0.02, 0.03, 0.2, np.nan, 0.3, *[np.nan] * 44], np.float32),
        rows,
        ("one thing",),
        99,
        Linearity(np.arange(5.0), np.arange(5.0) / 2, 50),
        DistanceBounds(
            np.full(5, 0.05),
            np.full(5, 0.01),
            20.0,
            30.0,
            2,
            0,
            4,
            np.array([0.02, 0.02, np.nan, 0.1, 0.2]),
            "as a test",
        ),
        Planes(rows[1:3], np.stack([at, at]), np.stack([at, at]), np.stack([at[:, None] + at] * 2)),
        ByRadius(np.array([0.0, 0.05, 0.1, 0.2]), np.array([6, 5, 3, 0]), 6, 20),
        Effort(np.array([1, 10]), np.array([1, 2]), np.array([[1.0, 0.6], [0.9, 0.5]]), 5),
        Weights(at, np.stack([at**2, 2 * at**2]), np.stack([1 + at**2, 1 + 2 * at**2]), 5, 10),
        Pictures(rows[:4], clean, np.clip(clean + 0.1, 0, 1), np.array([0, 1, 2, 0]), np.array([1, 2, 2, 0])),
    )


@pytest.fixture(scope="session")
def pictured(audit: Audit) -> Audit:
    """The audit with a geometry, and with class names that want to be code."""
    classes = [HOSTILE, "'\"></svg><script>hacked=1</script>", "{{ 7*7 }}|`x`"]
    meta = {**audit.meta, "data": {"name": "d", "classes": classes}}
    return replace(audit, meta=meta, geometry=drawn_portrait())
