"""What every row of the papers' tables will cost at a scale, nothing having been run: for docs/reproduction.md.

    python benchmarks/estimates.py [--scale small] [--tables seat-table-1,llr-table-6]

Counted passes times what one takes on this machine, as `planish reproduce --estimate` does, but in seconds of
processor time, so that other work beside it does not count: run it on one thread, OMP_NUM_THREADS=1. Writes
benchmarks/results/reproduce/estimates.json; tables that are not named stay in it as they are.
"""

from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

from timing import RESULTS

from planish.core.errors import BadInput
from planish.records.origin import provenance
from planish.reproduce import Job, chosen_rows, estimates, table, table_names
from planish.reproduce.pages import ESTIMATES
from planish.storage.files import write_json
from planish.storage.reading import read_json


def estimated(name: str, scale: str, known: dict[str, float]) -> dict[str, Any] | None:
    """Return what each training of a table's rows and its judging takes; None for a table that cannot be run."""
    with TemporaryDirectory() as empty:
        job = Job.of(table(name), scale, Path(empty))
        try:
            rows = chosen_rows(job.table, None, job.scale)
        except BadInput:
            return None
        return {run: asdict(found) for run, found in estimates(job, rows, known, process_time)}


def main(arguments: list[str] | None = None) -> None:
    """Estimate every table and write the file after each."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--scale", default="small")
    parser.add_argument("--tables", type=lambda text: text.split(","), default=list(table_names()))
    parser.add_argument("--out", type=Path, default=RESULTS / "reproduce")
    given = parser.parse_args(arguments)
    path, known = given.out / ESTIMATES, dict[str, float]()
    tables: dict[str, Any] = read_json(path, "remove it")["tables"] if path.exists() else {}
    for name in given.tables:
        if (found := estimated(name, given.scale, known)) is not None:
            hours = sum(run["seconds"] for run in found.values()) / 3600
            print(f"{name}: {len(found)} trainings, about {hours:.1f} hours", flush=True)
            tables[name] = found
        write_json({**provenance("cpu"), "scale": given.scale, "tables": tables}, path)


if __name__ == "__main__":
    main()
