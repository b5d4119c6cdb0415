"""What planish makes of kills, damaged files, a full disk and bad arguments, counted.

    python benchmarks/faults.py [--short] [--seed 0] [--out FILE.md]

Mutated files: every file that planish writes and formats that it reads, changed at random: a byte flipped, a stretch
zeroed, cut off, doubled or replaced. Each must be refused in one line or read as it was. Kills: a command killed with
SIGKILL again and again at random moments and resumed ends as one that was left alone. A full disk: writes fail from a
size on. Bad arguments: one line and exit code 2. "silent" counts what was read with other values and without a word,
"tracebacks" every exception but planish's own, "hangs" what took longer than 20 s.
"""

import argparse
import gzip
import hashlib
import io
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from planish.core.errors import BadInput
from planish.evaluation.adversarials import load_images
from planish.records import audit, distances, evaluation, geometry
from planish.runs.beside import load_gallery
from planish.runs.run import load_resume, read_history, read_weights
from planish.storage.files import write_arrays, write_text
from planish.storage.reading import read_headed, read_json

HANG = 20
DISKS = [0, 300, 3000, 10_000, 30_000, 100_000]
"""Bytes from which on a file cannot be written."""
TINY = ["data.limit=64", "settings.epochs=3", "settings.batch_size=32", "model.width=2", "threat.radius=0.1"]
SET = [part for override in TINY for part in ("--set", override)]
JUDGE = ["--data", "digits", "--limit", "12", "--device", "cpu", "--quiet"]
TRAIN = ["train", "--method", "fgsm", "--device", "cpu", "--quiet", *SET, "--out", "run"]
EVALUATE = [
    "evaluate",
    "run",
    *JUDGE,
    "--radius",
    "0.1",
    "--attacks",
    "pgd-20-2,apgd-t-10",
    "--keep-images",
    "--out",
    "run",
]
DISTANCES = ["distances", "run", *JUDGE, "--norm", "L2", "--attacks", "ddn-20,closest", "--out", "run"]
AUDIT = ["audit", "run", *JUDGE, "--radius", "0.1", "--out", "run"]


class Hang(Exception):
    """A read took too long."""


@dataclass(frozen=True)
class Reader:
    """How a kind of file is read. name: of the file. read: returns its values."""

    name: str
    read: Callable[[Path], Any]


def of_data(path: Path) -> Any:
    from planish.data import load

    images = load(str(path), "test")
    return images.x, images.labels, images.classes


READERS = (
    Reader("model.safetensors", read_weights),
    Reader("resume.pt", load_resume),
    Reader("config.toml", read_headed),
    Reader("metrics.jsonl", lambda path: read_history(path, {"epoch": 3})),
    Reader("provenance.json", lambda path: read_json(path, "train again")),
    Reader("evaluation.npz", evaluation.load),
    Reader("adversarial.npz", load_images),
    Reader("distances.npz", distances.load),
    Reader("numbers.npz", distances.load_numbers),
    Reader("audit.npz", lambda path: audit.load(path.parent)),
    Reader("geometry.npz", lambda path: geometry.load(path.parent)),
    Reader("gallery.npz", load_gallery),
    Reader("data.npz", of_data),
)


def beside(kind: str) -> Callable[[Path], Any]:
    """Return a reader of the data set that a file belongs to: of its folder, or of the one two above a picture."""
    return lambda path: of_data(Path(f"{kind}:{path.parents[2] if kind == 'folder' else path.parent}"))


DATA = (
    Reader("mnist/t10k-images-idx3-ubyte", beside("mnist")),
    Reader("mnist/t10k-labels-idx1-ubyte.gz", beside("mnist")),
    Reader("array/images.npy", lambda path: of_data(Path(f"npy:{path}"))),
    Reader("array/labels.npy", lambda path: of_data(Path(f"npy:{path.with_name('images.npy')}"))),
    Reader("parquet/test.parquet", lambda path: of_data(Path(f"parquet:{path}"))),
    Reader("shards/test-000.tar", lambda path: of_data(Path(f"webdataset:{path}"))),
    Reader("pictures/test/a/0.png", beside("folder")),
    Reader("pictures/test/a/1.jpg", beside("folder")),
    Reader("pictures/test/b/2.webp", beside("folder")),
)
"""Files of data sets, whose formats have no digest: a changed byte may be a changed pixel."""


def digest(value: Any) -> str:
    """Return what tells values apart: tensors, arrays, records and plain ones."""
    found = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor | np.ndarray):
            array = np.ascontiguousarray(part.numpy() if isinstance(part, torch.Tensor) else part)
            found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        elif isinstance(part, dict):
            for key in sorted(part, key=repr):
                found.update(repr(key).encode())
                add(part[key])
        elif isinstance(part, list | tuple):
            found.update(str(len(part)).encode())
            for item in part:
                add(item)
        elif hasattr(part, "__dataclass_fields__"):
            add(vars(part))
        else:
            found.update(repr(part).encode())

    add(value)
    return found.hexdigest()


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return the content, damaged in one way."""
    at, length = chance.randrange(len(content)), chance.choice((1, 4, 64, 1024))
    how = chance.choice(("flip", "bit", "zero", "cut", "double", "random", "insert"))
    before, there, after = content[:at], content[at : at + length], content[at + length :]
    if how == "cut":
        return before
    noise = bytes(chance.randrange(256) for _ in range(len(there)))
    changed = {
        "flip": bytes([there[0] ^ chance.randrange(1, 256)]) + there[1:],
        "bit": bytes([there[0] ^ (1 << chance.randrange(8))]) + there[1:],
        "zero": bytes(len(there)),
        "double": there * 2,
        "random": noise,
        "insert": noise + there,
    }
    return before + changed[how] + after


def outcome(reader: Reader, path: Path, whole: str) -> str:
    """Return what became of reading a damaged file."""

    def late(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG)
    try:
        value = reader.read(path)
    except BadInput as error:
        return "refused" if "\n" not in str(error) else "tracebacks"
    except Hang:
        return "hangs"
    except Exception as error:
        print(f"{reader.name}: {type(error).__name__}: {error}", file=sys.stderr)
        return "tracebacks"
    finally:
        signal.alarm(0)
    return "unharmed" if digest(value) == whole else "silent"


def mutate(reader: Reader, folder: Path, count: int, chance: random.Random) -> Counter[str]:
    """Damage the file so many times, read it each time, and count what became of it."""
    path = folder / reader.name
    content, found = path.read_bytes(), Counter[str]()
    whole = digest(reader.read(path))
    for _ in range(count):
        damaged = mutated(content, chance)
        if damaged == content:
            continue
        path.write_bytes(damaged)
        found[outcome(reader, path, whole)] += 1
    path.write_bytes(content)
    return found


def planish(arguments: list[str], cwd: Path, largest: int | None = None) -> subprocess.Popen[str]:
    """Start a command. largest: bytes from which on writing a file fails, as on a full disk."""

    def limited() -> None:
        if largest is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "planish", *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limited
    )


def finished(arguments: list[str], cwd: Path, largest: int | None = None) -> tuple[int, str, str]:
    """Run a command to its end; its exit code and streams. A hang is killed and has the code -9."""
    child = planish(arguments, cwd, largest)
    try:
        out, err = child.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
    return child.returncode, out, err


def in_process(arguments: list[str], folder: Path) -> Any:
    """Run a command in this process and that folder; its result, with the exit code and both streams."""
    from typer.testing import CliRunner

    from planish.cli.main import app

    os.chdir(folder)
    return CliRunner().invoke(app, arguments, prog_name="planish")


def files_for_reading(folder: Path, commands: tuple[list[str], ...] = (TRAIN, EVALUATE, AUDIT, DISTANCES)) -> None:
    """Make one of every file that these commands write, and some more."""
    for arguments in commands:
        result = in_process(arguments, folder)
        assert result.exit_code in (0, 1), result.output
    run = folder / "run"
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 255, (30, 1, 8, 8), np.uint8), np.arange(30) % 10
    np.savez_compressed(run / "data.npz", x=x, y=y)
    pictures = {"clean": x / np.float32(255), "adversarial": 1 - x / np.float32(255)}
    numbers = dict.fromkeys(("labels", "predicted_clean", "predicted_adv", "indices"), y)
    write_arrays(run / "gallery.npz", **pictures, **numbers)
    meta = {"schema_version": 1, "norm": "L2", "radius": 0.1}
    plain = np.arange(5)
    record = distances.Numbers(plain, plain, plain, {"gradient": generator.random(5).astype(np.float32)}, meta)
    distances.save_numbers(record, run / "numbers.npz")


def data_for_reading(folder: Path) -> None:
    """Write a small data set of each format; what planish caches of them lies in the folder too."""
    os.environ["PLANISH_HOME"] = str(folder / "home")
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    y = (np.arange(6) % 2).astype(np.uint8)
    gray, pictures = x[..., 0], [Image.fromarray(one) for one in x]
    for name in ("mnist", "array", "parquet", "shards", "pictures/test/a", "pictures/test/b"):
        (folder / name).mkdir(parents=True)
    size = struct.pack(">3I", *gray.shape)
    (folder / "mnist/t10k-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + size + gray.tobytes())
    numbers = bytes([0, 0, 8, 1]) + struct.pack(">I", len(y)) + y.tobytes()
    (folder / "mnist/t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(numbers))
    np.save(folder / "array/images.npy", x)
    np.save(folder / "array/labels.npy", y)
    for picture, place in zip(pictures, ("a/0.png", "a/1.jpg", "b/2.webp", "b/3.png"), strict=False):
        picture.save(folder / "pictures/test" / place)
    encoded = [{"bytes": path.read_bytes()} for path in sorted(folder.glob("pictures/test/*/*.png"))]
    pyarrow.parquet.write_table(pyarrow.table({"img": encoded, "label": [0, 1]}), folder / "parquet/test.parquet")
    with tarfile.open(folder / "shards/test-000.tar", "w") as shard:
        for number, one in enumerate(encoded):
            for name, content in ((f"{number}.png", one["bytes"]), (f"{number}.cls", b"%d" % number)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def read_or_refused(found: Counter[str]) -> Counter[str]:
    """Return the counts of a format without a digest: what was read, its values unharmed or not, is one."""
    kept = Counter({name: found[name] for name in ("refused", "tracebacks", "hangs")})
    return kept + Counter(read=found["unharmed"] + found["silent"])


def outcome_of(folder: Path) -> dict[str, str]:
    """Return the digests of what a chain of commands ended with, times and counts of passes aside."""
    run = folder / "run"
    record, images = evaluation.load(run / "evaluation.npz"), load_images(run / "adversarial.npz")
    found, measured = audit.load(run), distances.load(run / "distances.npz")
    return {
        "weights": hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(),
        "evaluation": digest([[c.name, c.margin, c.predicted, c.step] for c in record.columns]),
        "images": digest(images),
        "audit": digest([found.broken_by, found.attacks, [(f.check, f.verdict, f.statistic) for f in found.findings]]),
        "distances": digest([[c.name, c.distance] for c in measured.columns]),
    }


def killed(folder: Path, arguments: list[str], times: int, chance: random.Random, longest: float) -> Counter[str]:
    """Kill a command so many times at random moments, resume it each time, and let it end."""
    found = Counter[str]()
    for count in range(times):
        child = planish([*arguments, "--resume"] if count else arguments, folder)
        time.sleep(chance.uniform(0.3, 1.0) * longest)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            found["kills"] += 1
        _, err = child.communicate()
        found["tracebacks"] += "Traceback" in err
    code, _, err = finished([*arguments, "--resume"], folder)
    found["refused to go on"] += code not in (0, 1)
    if code not in (0, 1):
        print(err, file=sys.stderr)
    return found


def kills(folder: Path, times: int, chance: random.Random) -> Counter[str]:
    """Kill each of four commands so many times; what they end with is what undisturbed ones end with."""
    whole, cut = folder / "left alone", folder / "cut"
    found = Counter[str]()
    for place in (whole, cut):
        place.mkdir()
    for arguments in (TRAIN, EVALUATE, AUDIT, DISTANCES):
        began = time.monotonic()
        code, _, err = finished(arguments, whole)
        assert code in (0, 1), err
        found += killed(cut, arguments, times, chance, time.monotonic() - began)
    one, other = outcome_of(whole), outcome_of(cut)
    found["lost"] = sum(one[name] != other[name] for name in one)
    return found


def full_disk(folder: Path, sizes: list[int]) -> Counter[str]:
    """Let writes fail from a size on: one line, and what stood there stands still."""
    found = Counter[str]()
    place = folder / "full"
    shutil.copytree(folder / "whole", place)
    before = outcome_of(place)
    for size in sizes:
        for arguments in (TRAIN, EVALUATE, AUDIT, DISTANCES):
            out = [*arguments[:-1], f"new-{size}-{arguments[0]}"]
            code, _, err = finished(out, place, size)
            found["commands"] += 1
            found["tracebacks"] += "Traceback" in err or "mistake in planish" in err
            found["hangs"] += code == -signal.SIGKILL
            found["refused"] += code == 2 and "cannot write" in err
            found["ended"] += code in (0, 1) and not err
            resumed = finished([*arguments, "--resume"], place, size)
            found["tracebacks"] += "Traceback" in resumed[2] or "mistake in planish" in resumed[2]
            found["commands"] += 1
            found["refused"] += resumed[0] == 2
            found["ended"] += resumed[0] in (0, 1)
    after = outcome_of(place)
    found["lost"] = sum(before[name] != after[name] for name in before)
    return found


BAD: dict[str, list[str]] = {
    "model.width": ["1.5", "inf", "nan", "-1", "0", "true", "'8'", "[8]", "1e8", "100000000", "65537", "{a=1}"],
    "seed": ["-1", "1.5", "x", "true", 20 * "9", 400 * "9", "[1]", "inf"],
    "settings.epochs": ["0", "-1", "1.5", "many", "inf", 400 * "9", "[]"],
    "settings.batch_size": ["0", "-1", "2.5", "100000", "nan"],
    "settings.learning_rate": ["-1", "inf", "nan", "fast", "[0.1]"],
    "settings.momentum": ["1", "-0.1", "nan", "inf"],
    "settings.weight_decay": ["-1", "inf", "nan"],
    "settings.ema": ["1", "-1", "nan", "2"],
    "settings.accumulate": ["0", "-1", "1.5"],
    "settings.clip": ["-1", "nan", "x"],
    "settings.drops": ["[2]", "[nan]", "[-1]", "7"],
    "settings.drop_factor": ["-1", "inf", "nan"],
    "settings.schedule": ["steps", "3"],
    "settings.precision": ["fp8", "16"],
    "data.limit": ["0", "-1", "1.5", "few"],
    "data.validation": ["-1", "64", "1.5"],
    "data.crop": ["-1", "1000000000", "1.5"],
    "data.cutout": ["-1", "1000000000"],
    "data.size": ["0", "-1", "1000000000", "2.5"],
    "data.workers": ["-1", "1000000", "1.5"],
    "data.stream": ["sometimes", "7"],
    "data.source": ["nowhere.npz", "digit", "3", "''", "cifar10:nowhere"],
    "threat.radius": ["-1", "inf", "nan", "8", "8/0", "wide", "''"],
    "threat.norm": ["L3", "L1", "2"],
    "method.name": ["satndard", "3", "''", "a.py:B", "nowhere:C"],
    "method.nix": ["1"],
    "model.name": ["small-cn", "3", "''", "a.py:B", "wide-resnet-1-1-1-1-1"],
    "guard.every": ["-1", "1.5", "x"],
    "nix.nix": ["1"],
    "settings": ["3"],
}
"""By key of a configuration: values that are refused."""
OPTIONS: dict[str, list[str]] = {
    "--radius": ["-1", "8", "8/0", "inf", "nan", "x", "", "1e400"],
    "--norm": ["L3", "", "linf2"],
    "--attacks": ["pdg-50", "pgd-0", "pgd--1", "pgd-1-1-1-1-1-1-1-1", "transfer", "nix.py:A", ",,x"],
    "--limit": ["0", "-1", "few", "1.5", 5000 * "9"],
    "--seed": ["-1", "x", 20 * "9", 400 * "9", 5000 * "9"],
    "--size": ["0", "-1", "1000000000", "x"],
    "--precision": ["fp8", ""],
    "--device": ["tpu9", "cuda:99", "", "cpu:x"],
    "--data": ["nowhere.npz", "digit", "", "cifar10:nowhere", "/proc/self/mem", "\x00"],
    "--surrogates": ["nowhere", "run"],
    "--out": ["/proc/nowhere/deeper"],
}
"""By option of `evaluate`: values that are refused."""


def bad_arguments(folder: Path) -> Counter[str]:
    """Give every bad argument, in this process: one line on stderr and exit code 2."""
    judge = [*JUDGE, "--radius", "0.1", "--attacks", "fgsm", "--out", "elsewhere"]
    lines = [[*TRAIN[:-1], "elsewhere", "--set", f"{key}={value}"] for key in BAD for value in BAD[key]]
    lines += [["evaluate", "run", *judge, key, value] for key in OPTIONS for value in OPTIONS[key]]
    lines += [["audit", "run", *JUDGE, "--radius", "0.1", "--out", "elsewhere", "--budget", "lavish"]]
    lines += [[command, "nowhere", *judge] for command in ("evaluate",)] + [
        ["report", "nowhere"],
        ["compare", "nowhere"],
    ]
    found = Counter[str]()
    for line in lines:
        result = in_process(line, folder / "whole")
        said = result.stderr
        fine = result.exit_code == 2 and "Traceback" not in said and (said.count("\n") == 1 or "Usage" in said)
        found["commands"] += 1
        found["refused"] += fine
        found["silent"] += result.exit_code == 0
        found["tracebacks"] += "mistake in planish" in said or not isinstance(result.exception, SystemExit | None)
        if not fine:
            print(" ".join(line)[:200], result.exit_code, said[:300], file=sys.stderr)
        shutil.rmtree("elsewhere", ignore_errors=True)
    return found


def table(rows: dict[str, Counter[str]], names: list[str], head: str) -> str:
    """Return a Markdown table of counts."""
    lines = [f"| {head} | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    lines += [f"| {row} | {' | '.join(f'{found[name]:,}' for name in names)} |" for row, found in rows.items()]
    return "\n".join(lines)


def main() -> None:
    """Run all four, print their tables, and exit with 1 if anything was lost, silent, a traceback or a hang."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="a tenth of the files and one kill each")
    parser.add_argument("--only", default="files,data,kills,disk,arguments", help="some of these, with commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the tables there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    chance, only = random.Random(asked.seed), asked.only.split(",")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = folder / "files"
        files.mkdir()
        files_for_reading(files)
        each = 40 if asked.short else 420
        mutations = {reader.name: mutate(reader, files / "run", each, chance) for reader in READERS if "files" in only}
        mutations["all"] = sum(mutations.values(), Counter())
        data_for_reading(folder / "data")
        sets = {one.name: mutate(one, folder / "data", each // 2, chance) for one in DATA if "data" in only}
        sets = {name: read_or_refused(found) for name, found in sets.items()}
        sets["all"] = sum(sets.values(), Counter())
        shutil.copytree(files, folder / "whole")
        whole = kills(folder, 1 if asked.short else 8, chance) if "kills" in only else Counter()
        full = full_disk(folder, [3000] if asked.short else DISKS) if "disk" in only else Counter()
        bad = bad_arguments(folder) if "arguments" in only else Counter()
    counts = ["refused", "unharmed", "silent", "tracebacks", "hangs"]
    other = ["commands", "kills", "refused", "ended", "refused to go on", "lost", "silent", "tracebacks", "hangs"]
    rows = {"killed and resumed": whole, "a full disk": full, "bad arguments": bad}
    tables = [table(mutations, counts, "damaged file"), table(rows, other, "fault")]
    tables.insert(1, table(sets, ["refused", "read", "tracebacks", "hangs"], "damaged data set"))
    text = "\n\n".join(tables) + "\n"
    print(text)
    if asked.out:
        write_text(text, asked.out)
    every = mutations["all"] + sets["all"] + whole + full + bad
    sys.exit(any(every[name] for name in ("lost", "silent", "tracebacks", "hangs", "refused to go on")))


if __name__ == "__main__":
    main()
