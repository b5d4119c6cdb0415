"""How much memory an evaluation takes by its number of images, and how long a million images take to be listed.

    python benchmarks/memory.py [--images 2000,5000,20000] [--rows 1000000] [--out benchmarks/results/memory]

Each number is measured in a process of its own, from its peak of resident memory. Evaluations: images of 64x64 of
random pixels in Parquet files, a small network, FGSM and PGD-2, the adversarial images kept. Lists: a million images of
one pixel in Parquet files of 100,000 rows in row groups of 100, as Hugging Face writes them; 1,000 folders of
1,000 links to a file; 100 tar shards of 10,000 images, for the first time and again. "before" is what a process takes
that has imported the same and listed nothing. Epochs: batches of 100 streamed from 20,000 of these images.
"""

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE, CLASSES = 64, 10
SHARDS = 100
Measured = dict[str, float]


def peak() -> float:
    """Return the most memory that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def held() -> float:
    """Return the memory that this process holds now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def png(pixels: np.ndarray) -> bytes:
    """Encode an image."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG", compress_level=1)
    return content.getvalue()


def parquet(folder: Path, count: int, side: int, group: int, rows: int = 100_000) -> str:
    """Write Parquet files of so many rows in row groups; return them as data. Images of one pixel are all the same."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator, one = np.random.default_rng(0), png(np.zeros((1, 1, 3), np.uint8))
    shards = -(-count // rows)
    for number in range(shards):
        path = folder / f"test-{number:05}-of-{shards:05}.parquet"
        kind = pa.schema({"image": pa.struct({"bytes": pa.binary()}), "label": pa.int64()})
        with pq.ParquetWriter(path, kind) as writer:
            for first in range(number * rows, min(count, (number + 1) * rows), group):
                labels = np.arange(first, min(count, first + group)) % CLASSES
                sizes = (side, side, 3)
                images = [png(generator.integers(0, 256, sizes, np.uint8)) if side > 1 else one for _ in labels]
                table = pa.table({"image": [{"bytes": image} for image in images], "label": labels}, kind)
                writer.write_table(table)
    return f"parquet:{folder}"


def folders(folder: Path, count: int) -> str:
    """Make folders of links to one picture in each; return them as data."""
    for number in range(1000):
        place = folder / "set" / "test" / f"class-{number:04}"
        place.mkdir(parents=True)
        first = place / f"picture_{number:04}_{0:08}.png"
        first.write_bytes(png(np.zeros((1, 1, 3), np.uint8)))
        for at in range(1, count // 1000):
            os.link(first, place / f"picture_{number:04}_{at:08}.png")
    return f"folder:{folder / 'set'}"


def shards(folder: Path, count: int) -> str:
    """Write tar shards of images of one pixel; return them as data."""
    image = png(np.zeros((1, 1, 3), np.uint8))
    for number in range(SHARDS):
        with tarfile.open(folder / f"test-{number:06}.tar", "w") as archive:
            for at in range(count // SHARDS):
                for kind, content in (("png", image), ("cls", b"%d" % (at % CLASSES))):
                    member = tarfile.TarInfo(f"{number:06}{at:06}.{kind}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return f"webdataset:{folder}"


def evaluated(data: str, place: str) -> Measured:
    """Evaluate a small network."""
    import torch
    from torch import nn

    from planish.core.threat import Linf
    from planish.runs.judge import EvaluationConfig, LoadedModel, evaluate_into

    torch.set_num_threads(1)
    torch.manual_seed(0)
    stages = [nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*stages, nn.Linear(16 * 49, CLASSES))
    task = EvaluationConfig(data, Linf(1 / 255), ("fgsm", "pgd-2-1"), keep_images=True)
    before, began = peak(), time.perf_counter()
    *_, last = evaluate_into(LoadedModel(model, "small"), task, Path(place))
    assert last.names == ("fgsm", "pgd-2-1")
    return {"images": len(last.labels), "seconds": time.perf_counter() - began, "before": before, "peak": peak()}


def listed(data: str, place: str) -> Measured:
    """List a set."""
    import pyarrow.parquet  # noqa: F401  # what is imported is not what is listed
    import torch  # noqa: F401

    from planish.data.listing import Listing
    from planish.data.source import find

    before, began = peak(), time.perf_counter()
    found = find(data, "test")
    assert isinstance(found, Listing)
    return {"images": len(found), "seconds": time.perf_counter() - began, "before": before, "peak": peak()}


def epochs(data: str, place: str) -> Measured:
    """Stream five epochs; return what is held after each, and how often a row group was read in the last."""
    import torch

    from planish.data.listing import Listing
    from planish.data.source import find
    from planish.data.stream import Streamed

    torch.set_num_threads(1)
    listing = find(data, "test")
    assert isinstance(listing, Listing)
    batches = Streamed(listing, 100, (3, SIDE, SIDE))
    found: Measured = {"images": len(listing)}
    for number in range(5):
        for _ in batches.epoch(number, seed=0):
            pass
        found[f"after epoch {number + 1}"] = held()
    return {**found, "peak": peak()}


JOBS: dict[str, Callable[[str, str], Measured]] = {"evaluated": evaluated, "listed": listed, "epochs": epochs}


def measured(job: str, data: str, folder: Path) -> Measured:
    """Return what a job measures in a process of its own."""
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    own = {**os.environ, "PLANISH_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--job", job, "--data", data, "--place", str(place)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=own,
    )
    found: Measured = json.loads(done.stdout.splitlines()[-1])
    print(f"{job}, {data.partition(':')[0]}: {found}", flush=True)
    return found


def within(make: Callable[[Path], str], *jobs: str) -> list[Measured]:
    """Make data in a folder that is gone afterwards, and measure jobs on it."""
    with tempfile.TemporaryDirectory(prefix="planish-memory-") as place:
        folder = Path(place)
        (folder / "data").mkdir()
        data = make(folder / "data")
        return [measured(job, data, folder) for job in jobs]


def page(found: dict[str, Any]) -> str:
    """Return the tables."""
    lines = ["| evaluation of | before | peak | seconds |", "|---:|---:|---:|---:|"]
    for row in found["evaluations"]:
        lines.append(f"| {row['images']:,} | {row['before']:.0f} MiB | {row['peak']:.0f} MiB | {row['seconds']:.0f} |")
    lines += ["", "| listing of | images | before | peak | seconds |", "|---|---:|---:|---:|---:|"]
    for name, row in found["listings"].items():
        numbers = f"{row['before']:.0f} MiB | {row['peak']:.0f} MiB | {row['seconds']:.1f}"
        lines.append(f"| {name} | {row['images']:,} | {numbers} |")
    held_after = [f"{value:.0f}" for name, value in found["epochs"].items() if name.startswith("after")]
    lines += [
        "",
        f"Held after epochs 1 to 5 of {found['epochs']['images']:,} streamed images: {', '.join(held_after)} MiB.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all, print tables, and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", default="2000,5000,20000", help="numbers of images to evaluate, with commas")
    parser.add_argument("--rows", type=int, default=1_000_000, help="images to list")
    parser.add_argument(
        "--only", default="evaluations,parquet,folder,webdataset,epochs", help="some of these, with commas"
    )
    parser.add_argument("--out", type=Path, help="a folder for memory.json")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job:
        print(json.dumps(JOBS[asked.job](asked.data, asked.place)))
        return
    only, counts, rows = asked.only.split(","), [int(count) for count in asked.images.split(",")], asked.rows
    found: dict[str, Any] = {"evaluations": [], "listings": {}, "epochs": {}}
    for count in counts if "evaluations" in only else []:
        found["evaluations"] += within(lambda folder, count=count: parquet(folder, count, SIDE, 100), "evaluated")
    if "parquet" in only:
        found["listings"]["Parquet"] = within(lambda folder: parquet(folder, rows, 1, 100), "listed")[0]
    if "folder" in only:
        found["listings"]["folders"] = within(lambda folder: folders(folder, rows), "listed")[0]
    if "webdataset" in only:
        first, again = within(lambda folder: shards(folder, rows), "listed", "listed")
        found["listings"] |= {"tar shards, first": first, "tar shards, again": again}
    if "epochs" in only:
        found["epochs"] = within(lambda folder: parquet(folder, 20_000, SIDE, 100), "epochs")[0]
    if found["epochs"]:
        print(page(found))
    if asked.out:
        from planish.records.origin import commit
        from planish.storage.files import write_json

        own = "python benchmarks/memory.py " + " ".join(
            f"--{name} {getattr(asked, name)}" for name in ("images", "rows")
        )
        write_json({"command": own, "commit": commit(), **found}, asked.out / "memory.json")


if __name__ == "__main__":
    main()
