"""How much memory an evaluation takes by its number of images, and how long a million images take to be listed.

    python benchmarks/memory.py [--images 2000,5000,20000] [--rows 1000000] [--out benchmarks/results/memory]
        [--page docs/data.md]

Each number is measured in a process of its own, from its peak of resident memory. Evaluations: images of 64x64 of
random pixels in a Parquet file, a small network that is right on all of them under FGSM and PGD-2; the fewest also with
their adversarial images kept. Lists: images of one pixel, in Parquet files of 100,000 rows in row groups of 100, as
Hugging Face writes them; in 1,000 folders of links to one file; a tenth of them in tar shards of 10,000, for the first
time and again. "before" is what a process takes that has imported the same and listed nothing; seconds are the
processor's. Epochs: the second most of the images of 64x64, streamed.
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timing import paste

from planish.records.origin import commit
from planish.storage.files import write_json

SIDE, CLASSES = 64, 10
IN_SHARD = 10_000
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


def parquet(folder: Path, count: int, side: int, group: int = 100, rows: int = 100_000) -> str:
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
                labels = np.zeros(min(count, first + group) - first, np.int64)
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
    for number in range(-(-count // IN_SHARD)):
        with tarfile.open(folder / f"test-{number:06}.tar", "w") as archive:
            for at in range(min(IN_SHARD, count - number * IN_SHARD)):
                for kind, content in (("png", image), ("cls", b"%d" % (at % CLASSES))):
                    member = tarfile.TarInfo(f"{number:06}{at:06}.{kind}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return f"webdataset:{folder}"


def kept(data: str, place: str) -> Measured:
    """Evaluate a small network, and keep the adversarial images."""
    return evaluated(data, place, keep_images=True)


def evaluated(data: str, place: str, keep_images: bool = False) -> Measured:
    """Evaluate a small network."""
    import torch
    from torch import nn

    from planish.core.threat import Linf
    from planish.runs.judge import EvaluationConfig, LoadedModel, evaluate_into

    torch.set_num_threads(1)
    torch.manual_seed(0)
    stages = [nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*stages, nn.Linear(16 * 49, CLASSES))
    with torch.no_grad():
        model[-1].bias[0] += 10  # right on all images under all attacks: every attack faces all of them
    task = EvaluationConfig(data, Linf(1 / 255), ("fgsm", "pgd-2-1"), keep_images=keep_images)
    before, began = peak(), time.process_time()
    *_, last = evaluate_into(LoadedModel(model, "small"), task, Path(place))
    assert last.names == ("fgsm", "pgd-2-1") and last.columns[-1].attempted.all()
    return {"images": len(last.labels), "seconds": time.process_time() - began, "before": before, "peak": peak()}


def listed(data: str, place: str) -> Measured:
    """List a set."""
    import pyarrow.parquet  # noqa: F401  # what is imported is not what is listed
    import torch  # noqa: F401

    from planish.data.listing import Listing
    from planish.data.source import find

    before, began = peak(), time.process_time()
    found = find(data, "test")
    assert isinstance(found, Listing)
    return {"images": len(found), "seconds": time.process_time() - began, "before": before, "peak": peak()}


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


JOBS: dict[str, Callable[[str, str], Measured]] = {
    "evaluated": evaluated,
    "kept": kept,
    "listed": listed,
    "epochs": epochs,
}


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


def tables(found: dict[str, Any]) -> str:
    """Return the tables, as docs/data.md has them."""
    lines = ["| evaluation of | before | peak | seconds |", "|---|---:|---:|---:|"]
    for name, row in found["evaluations"].items():
        lines.append(f"| {name} | {row['before']:.0f} MiB | {row['peak']:.0f} MiB | {row['seconds']:.0f} |")
    lines += ["", "| listing of | images | before | peak | seconds |", "|---|---:|---:|---:|---:|"]
    for name, row in found["listings"].items():
        numbers = f"{row['before']:.0f} MiB | {row['peak']:.0f} MiB | {row['seconds']:.1f}"
        lines.append(f"| {name} | {row['images']:,} | {numbers} |")
    after = ", ".join(f"{value:.0f}" for name, value in found["epochs"].items() if name.startswith("after"))
    told = f"Held after epochs 1 to 5 of {found['epochs']['images']:,} streamed images: {after} MiB."
    return "\n".join(["", *lines, "", told, "", ""])


def main() -> None:
    """Measure all, print tables, and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", default="2000,5000,20000", help="numbers of images to evaluate, with commas")
    parser.add_argument("--rows", type=int, default=1_000_000, help="images to list")
    parser.add_argument("--out", type=Path, help="a folder for memory.json")
    parser.add_argument("--page", type=Path, help="a page with a place for the tables, <!-- memory -->")
    for name in ("job", "data", "place"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job:
        print(json.dumps(JOBS[asked.job](asked.data, asked.place)))
        return
    found = everything([int(count) for count in asked.images.split(",")], asked.rows)
    print(tables(found))
    if asked.out:
        own = f"python benchmarks/memory.py --images {asked.images} --rows {asked.rows}"
        write_json({"command": own, "commit": commit(), **found}, asked.out / "memory.json")
    if asked.page:
        paste(tables(found), asked.page, "memory")


def everything(counts: list[int], rows: int) -> dict[str, Any]:
    """Measure all."""
    many = {f"{count:,} images": within(partial(parquet, count=count, side=SIDE), "evaluated")[0] for count in counts}
    few = min(counts)
    many[f"{few:,} images, kept"] = within(partial(parquet, count=few, side=SIDE), "kept")[0]
    lists = {"Parquet files": within(partial(parquet, count=rows, side=1), "listed")[0]}
    lists["folders"] = within(partial(folders, count=rows), "listed")[0]
    lists["tar shards, the first time"], lists["tar shards, again"] = within(
        partial(shards, count=rows // 10), "listed", "listed"
    )
    (streamed,) = within(partial(parquet, count=sorted(counts)[-2:][0], side=SIDE), "epochs")
    return {"evaluations": many, "listings": lists, "epochs": streamed}


if __name__ == "__main__":
    main()
