"""The audit on models that only seem robust and on honest ones: prints a table and writes docs/audit-zoo.md."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

from planish.audit.auditor import audit, checks
from planish.core.threat import Linf
from planish.records.audit import Audit

ROOT = Path(__file__).parents[1]
MARKS = {"pass": "·", "open": "?", "warn": "warn", "fail": "**fail**"}
INTRODUCTION = """# The audit's zoo

Five honest models, then models that only seem robust, each audited on test images of the digits: small networks,
few steps, a suite of two stages. `·` pass, `?` not made. The table is made by `python benchmarks/zoo.py`, the models by
`tests/audit/zoo.py`.
"""


def table(found: dict[str, Audit]) -> str:
    """Return a row for each check, a column for each model, and a last row with the headlines."""
    rows = [["check", *found], ["---"] * (1 + len(found))]
    for name in checks():
        rows.append([f"`{name}`", *(MARKS[audited.finding(name).verdict] for audited in found.values())])
    shares = [audited.robust_accuracy() for audited in found.values()]
    rows.append(["accuracy left, %", *(f"{100 * share.value:.1f} of {share.total}" for share in shares)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _zoo() -> Any:
    path = ROOT / "tests" / "audit" / "zoo.py"
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
    zoo = _zoo()
    models = {name: zoo.Liar(lambda name=name: zoo.trained(name)) for name in zoo.HONEST} | zoo.LIARS
    found = {}
    for name, entry in models.items():
        if options.only and name not in options.only:
            continue
        *_, last = audit(entry.make(), zoo.images(entry.images), Linf(entry.radius), zoo.PLAN, suite=zoo.SUITE)
        found[name] = last
        print(f"{name}: {last.verdict}, {last.headline()}", flush=True)
    text = f"{INTRODUCTION}\n{table(found)}"
    print(text)
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
