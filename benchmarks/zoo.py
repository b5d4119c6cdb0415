"""The audit on models that only seem robust and on honest ones: prints a table and writes docs/audit-zoo.md."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

from planish.audit.auditor import audit
from planish.core.threat import Linf
from planish.records.audit import Audit

ROOT = Path(__file__).parents[1]
INTRODUCTION = """# The audit's zoo

Models with honest gradients, and models that only seem robust, each audited on test images of the digits in Linf: small
networks, few steps, a suite of two stages. Made by `python benchmarks/zoo.py`; the models are in `tests/audit/zoo.py`
and `tests/audit/masks.py`. Checks that were not made, or passed, are not named; in brackets is what was measured.
"""
HONEST = """
## Honest models

None may fail. A warning says that a short attack overstates the model, that its loss bends, or that it came in training
mode.

"""
LIARS = """
## Models that only seem robust

`best known` is the accuracy that the audit leaves of the network without its mask (empty where there is none). A
headline is `right` that is at most two points above it, else `too high`: then a check must fail.

"""
SLACK = 0.02


def table(rows: list[list[str]]) -> str:
    """Return rows of cells, the header first, in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]) + "\n"


def row(name: str, found: Audit, *more: str) -> list[str]:
    """Return a model's cells: accuracies, what is given, and the checks that failed and warned."""
    shares = [f"{100 * share.value:.1f}" for share in (found.clean_accuracy(), found.robust_accuracy())]
    return [name, *shares, *more, *(_named(found, verdict) for verdict in ("fail", "warn"))]


def headline(found: Audit, best: Audit | None) -> tuple[str, str]:
    """Return what is the best known of the network without its mask, and whether the headline is right."""
    if best is None:
        return "", ""
    known = best.robust_accuracy().value
    right = found.robust_accuracy().value <= known + SLACK
    return f"{100 * known:.1f}", "right" if right else "too high"


def _named(found: Audit, verdict: str) -> str:
    named = [finding for finding in found.findings if finding.verdict == verdict]
    units = [" %" if finding.unit == "%" else "" for finding in named]
    return ", ".join(f"`{one.check}` ({one.statistic:.3g}{unit})" for one, unit in zip(named, units, strict=True))


def _zoo() -> Any:
    path = ROOT / "tests" / "audit" / "zoo.py"
    sys.path.insert(0, str(path.parent))  # where its masks are
    spec = importlib.util.spec_from_file_location("audit_zoo", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit_zoo"] = module
    spec.loader.exec_module(module)
    return module


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "audit-zoo.md")
    parser.add_argument("--only", nargs="*", help="names of models")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    zoo, found = _zoo(), {}
    for name, entry in (zoo.HONEST | zoo.LIARS).items():
        if not options.only or name in options.only:
            images = zoo.images(entry.images) if name in zoo.LIARS else entry.images(zoo.IMAGES)
            suite = zoo.suite(getattr(entry, "classes", 10))
            *_, found[name] = audit(entry.make(), images, Linf(entry.radius), zoo.PLAN, suite=suite)
            print(f"{name}: {found[name].verdict}, {found[name].headline()}", flush=True)
    honest = [["model", "clean, %", "left, %", "failed", "warned"]]
    honest += [row(name, found[name]) for name in zoo.HONEST if name in found]
    liars = [["model", "clean, %", "left, %", "best known, %", "headline", "failed", "warned"]]
    for name in (name for name in zoo.LIARS if name in found):
        liars.append(row(name, found[name], *headline(found[name], found.get(zoo.LIARS[name].of))))
    text = INTRODUCTION + HONEST + table(honest) + LIARS + table(liars)
    print(text)
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
