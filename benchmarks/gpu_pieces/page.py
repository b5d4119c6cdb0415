"""The section "On a GPU" of docs/results.md, from the files that `gpu.py` has written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timing import Columns, Row, markdown

from gpu_pieces import PIECES

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
NOTHING = "\n**Nothing has been measured on a GPU yet.**\n\n"
Document = dict[str, Any]
Rows = dict[str, Row]
SPEEDRUN: Columns = {
    "epochs": lambda row: str(row["epochs"]),
    "training": lambda row: f"{row['seconds']:.1f} s",
    "images/s": lambda row: f"{row['images_per_second']:,.0f}",
    "compilation": lambda row: f"{row['compile_seconds']:.1f} s" if row["compile"] else "not compiled",
    "clean": lambda row: row.get("clean", "not judged"),
    "planish-suite": lambda row: row.get("robust", "not judged"),
    "judging": lambda row: f"{row['judging_seconds']:.1f} s" if "judging_seconds" in row else "",
}
STEPS: Columns = {
    "step": lambda row: row["name"],
    "batch": lambda row: str(row["batch"]),
    "images/s": lambda row: f"{row['images_per_second']:,.0f}",
    "standard's": lambda row: f"{row['standard_images_per_second']:,.0f}",
    "time": lambda row: f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
    "counted": lambda row: "" if row["counted"] is None else f"{row['counted']:.2f}",
}
ATTACKS: Columns = {
    "attack": lambda row: row["attack"],
    "by": lambda row: row["by"],
    "images/s": lambda row: f"{row['images_per_second']:,.0f}",
    "time": lambda row: f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
}
SUITES: Columns = {
    "suite": lambda row: row["suite"] + ("" if row["whole"] else f", cut short after {', '.join(row['stages'])}"),
    "robust": lambda row: row["robust"],
    "passes per image": lambda row: f"{row['passes_per_image']:,.0f}",
    "seconds": lambda row: f"{row['seconds']:.1f}",
    "images/s": lambda row: f"{row['images_per_second']:,.1f}",
}
PAPERS: Columns = {
    "row": lambda row: row["name"],
    "epochs": lambda row: f"{row['epochs_done']} of {row['epochs']}",
    "s/epoch": lambda row: f"{row['seconds_per_epoch']:.1f}",
    "clean": lambda row: row.get("judged", {}).get("clean", "not judged"),
    "planish-suite": lambda row: row.get("judged", {}).get("robust", "not judged"),
}


def section(folder: Path) -> str:
    """Return the section's text: all that lies in the folder and in its subfolders."""
    homes = sorted({path.parent for path in folder.rglob("*.json") if path.stem in PIECES})
    return "".join(map(measured, homes)) or NOTHING


def measured(home: Path) -> str:
    """Return what one OUT folder says."""
    documents = {
        name: json.loads((home / f"{name}.json").read_text()) for name in PIECES if (home / f"{name}.json").exists()
    }
    attempts = [attempt for document in documents.values() for attempt in document["attempts"] if "device" in attempt]
    lines = list(dict.fromkeys(map(origin, attempts)))
    tiny = any(document["tiny"] for document in documents.values())
    parts = ["\n", *(f"{line}\n" for line in lines)]
    if tiny:
        parts.append("Tiny: networks and images so small that this shows only that everything runs.\n")
    for name, document in documents.items():
        parts += [f"\n**{PIECES[name].title}** ({document['state']})\n\n", *TEXTS[name](document["rows"])]
    return "".join([*parts, "\n"])


def origin(attempt: Row) -> str:
    """Return where and when an attempt was made."""
    versions, card = attempt["versions"], attempt["card"]
    where = f"{card['name']}, driver {card['driver_version']}" if card else attempt["device"]
    cuda = f", CUDA {versions['cuda']}" if versions["cuda"] else ""
    commit = (attempt["commit"] or "unknown")[:12]
    return f"{where}; PyTorch {versions['torch']}{cuda}; commit {commit}; {attempt['call'][:10]}."


def good(rows: Rows) -> Rows:
    """Return the rows that did not fail."""
    return {name: row for name, row in rows.items() if "error" not in row}


def failures(rows: Rows) -> Iterator[str]:
    """Say which rows failed, and why."""
    for name, row in rows.items():
        if "error" in row:
            yield f"- `{name}` failed: {row['error'].splitlines()[0][:160]}\n"


def table(rows: list[Row], columns: Columns) -> str:
    """Return a table, nothing if it has no rows."""
    return markdown(rows, columns) + "\n" if rows else ""


def works(rows: Rows) -> Iterator[str]:
    """Say what agrees, and list what does not."""
    found = good(rows)
    agree = [name for name, row in found.items() if row["status"] == "ok"]
    yield f"{len(agree)} of {len(rows)} checks agree with the CPU or hold.\n"
    for name, row in found.items():
        if row["status"] in ("differs", "failed"):
            seen = "; ".join(row.get("problems") or [f"{key} {row[key]}" for key in SEEN if key in row])
            yield f"- `{name}` {row['status']}: {seen[:240]}\n"
    yield from failures(rows)
    if peaks := found.get("memory", {}).get("bytes"):
        told = ", ".join(f"{name}: {value / 2**20:,.0f} MiB" for name, value in peaks.items())
        yield f"\nPeak memory: {told}.\n"


SEEN = ("verdicts_differ", "largest_difference", "losses", "gradients_apart", "rules")


def speedrun(rows: Rows) -> Iterator[str]:
    """Show the run with its verdict."""
    found = good(rows)
    if "trained" in found:
        verdict = dict(found.get("judged", {}))
        renamed = {"judging_seconds": verdict.pop("seconds")} if verdict else {}
        yield table([{**verdict, **renamed, **found["trained"]}], SPEEDRUN)
        yield f"Data: {found['trained']['data']}.\n"
    yield from failures(rows)


def steps(rows: Rows) -> Iterator[str]:
    """Show every step, and what the guard adds."""
    found = good(rows)
    named = [{"name": name.rsplit(f", {row['batch']}")[0], **row} for name, row in found.items() if "ratio" in row]
    for row, name in zip(named, (name for name, row in found.items() if "ratio" in row), strict=True):
        row["name"] += ", compiled" if name.endswith("compiled") else ""
    yield table(named, STEPS)
    for row in found.values():
        if "look" in row:
            added = f"{row['added']:.3f} of a standard step to each step on the average"
            yield f"The guard at batch {row['batch']}, every {row['every']} steps, adds {added}.\n"
    yield from failures(rows)


def judging(rows: Rows) -> Iterator[str]:
    """Show attacks by all who run them, then suites."""
    found = good(rows)
    attacks = [
        {"attack": f"{name}, {row['steps']} steps", "by": by, **timing}
        for name, row in found.items()
        if "by" in row
        for by, timing in row["by"].items()
    ]
    suites = [row for row in found.values() if "suite" in row]
    yield table(attacks, ATTACKS)
    yield table(suites, SUITES)
    if any(not row["trained"] for row in found.values() if "trained" in row):
        yield "The network's weights are random: the speedrun had left none.\n"
    if gap := found.get("difference"):
        alone = f"{gap['only_first_stands']} images stand after {gap['first']} alone"
        yield f"{alone}, {gap['only_second_stands']} after {gap['second']} alone.\n"
    yield from failures(rows)


def papers(rows: Rows) -> Iterator[str]:
    """Show how far each row has come."""
    yield table([{"name": name, **row} for name, row in rows.items() if "epochs_done" in row], PAPERS)
    yield from failures(rows)


TEXTS = {"works": works, "speedrun": speedrun, "steps": steps, "judging": judging, "papers": papers}
