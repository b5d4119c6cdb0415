"""Everything that needs a GPU, measured by one command in ten minutes, on a machine without network.

    python benchmarks/gpu.py OUT --data FOLDER [--minutes 9.5] [--only PIECE,...] [--work FOLDER]
    python benchmarks/gpu.py OUT --device cpu --tiny     # the same, small: shows that everything runs
    python benchmarks/gpu.py [FOLDER] --page             # writes "On a GPU" into docs/results.md

FOLDER holds train.npz and test.npz. The pieces (works, speedrun, steps, judging, papers) come in the order of their
worth, each in a process of its own that is stopped at its time limit; what one leaves of it the last one may use. A
crash is recorded, and the next piece begins. OUT is flat and holds at most eight files, each under 16 MB:

- works.json, speedrun.json, steps.json, judging.json, papers.json: rows by name, written after every row; for each
  attempt the card, driver, versions, commit, date, how it ended and the end of its log;
- network-1.safetensors, network-2.safetensors: the weights of the speedrun, kernels in half precision;
- records.zip: what became of every image, each record as `planish.records.evaluation` writes and reads it.

Checkpoints, whole logs and compiled kernels lie in the work folder, OUT-work beside OUT unless named. A second call
with the same OUT goes on with what is missing, and measures again what failed. Needs torch, numpy and safetensors;
torchattacks is compared with if it is there.
"""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from gpu_pieces import PIECES
from gpu_pieces.job import Broken, Job
from gpu_pieces.page import PAGE, section
from timing import RESULTS, paste

from planish.core.errors import BadInput
from planish.storage.files import write_json

LOG_LINES = 60
"""Lines of a log's end that are kept in OUT."""
LEAST = 5.0
"""Seconds under which no piece is begun."""
GRACE, MOST_GRACE = 15.0, 0.15
"""Seconds before its limit at which a piece ends by itself, and the share of its time that they may be."""
AGAIN = 3
"""Exit status of a piece that goes on in a new process: a CUDA error has poisoned this one."""


def options() -> ArgumentParser:
    """Return the command line."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", nargs="?", type=Path, default=RESULTS / "gpu", metavar="OUT")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all pieces together")
    parser.add_argument("--data", type=Path, help="a folder that holds train.npz and test.npz")
    parser.add_argument("--only", help=f"some of {','.join(PIECES)}")
    parser.add_argument("--work", type=Path, help="where checkpoints and logs lie; OUT-work unless given")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument(
        "--tiny", action="store_true", help="small networks, a few images that are drawn without --data"
    )
    parser.add_argument("--commit", help="the commit of this copy, where it is no git checkout")
    parser.add_argument("--page", action="store_true", help="only write the section of docs/results.md")
    parser.add_argument("--piece", choices=PIECES, help="measure this one in this process")
    parser.add_argument("--until", type=float, help="when --piece is to end, on the monotonic clock")
    parser.add_argument("--call", help="of --piece")
    return parser


def wanted(given: Namespace) -> list[str]:
    """Return the pieces that are asked for. Raises BadInput if anything does not fit."""
    names = list(PIECES) if given.only is None else [name.strip() for name in given.only.split(",")]
    if unknown := [name for name in names if name not in PIECES]:
        raise BadInput(f"no piece '{unknown[0]}'; known: {', '.join(PIECES)}")
    for path in (given.out / f"{name}.json" for name in names):
        if path.exists() and json.loads(path.read_text())["tiny"] != given.tiny:
            raise BadInput(f"{path} is {'not ' if given.tiny else ''}tiny; choose another OUT")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("PyTorch sees no CUDA device; --device cpu --tiny shows that everything runs")
    if given.data is None and not given.tiny:
        raise BadInput("name the folder that holds train.npz and test.npz: --data FOLDER")
    if given.data is not None and not all((given.data / f"{split}.npz").is_file() for split in ("train", "test")):
        raise BadInput(f"{given.data} does not hold train.npz and test.npz")
    return names


def measured(given: Namespace) -> str:
    """Measure one piece in this process; return how it ended."""
    # The old switch, which PyTorch 2.11 and 2.13 both have: the newer one may not be mixed with it.
    torch.backends.cudnn.allow_tf32 = False
    if given.device == "cpu":
        torch.set_num_threads(1)
    device = torch.device(given.device)
    job = Job(given.piece, given.out, given.work, device, given.tiny, given.data, given.until, given.call)
    job.begin(given.commit)
    try:
        import_module(f"gpu_pieces.{given.piece}").measure(job)
    except Broken as error:
        job.end(f"a CUDA error in '{error}'")
        raise SystemExit(AGAIN) from error
    job.end("out of time" if job.left_out else "done")
    return str(job.document["state"])


def attempt(command: list[str], seconds: float, log: Path) -> int | None:
    """Run a command with its output in the log; return its exit status, None if it had to be killed."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, process_group=0, env=environment(log)
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def environment(log: Path) -> dict[str, str]:
    """Return the environment of a piece: all share their compiled kernels."""
    caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    return {**os.environ, **{name: str(log.parent / folder) for name, folder in caches.items()}}


def closed(given: Namespace, name: str, status: int | None, seconds: float, log: Path) -> dict[str, Any]:
    """Enter how an attempt ended, and the end of its log, into the piece's file; return what that holds."""
    path = given.out / f"{name}.json"
    document = json.loads(path.read_text()) if path.exists() else {}
    empty: dict[str, Any] = {"piece": name, "tiny": given.tiny, "state": "begun", "attempts": [], "rows": {}}
    document = {**empty, **document}
    if not document["attempts"] or "seconds" in document["attempts"][-1]:
        document["attempts"].append({"call": given.call})
    if document["state"] == "begun" or status not in (0, AGAIN):
        state = "killed at its time limit" if status is None else f"crashed with exit status {status}"
        document["state"] = state
        if at := document.pop("at", None):
            marks = {"error": state, "attempt": len(document["attempts"]) - 1, "call": given.call}
            document["rows"][at] = {**document["rows"].get(at, {}), **marks}
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    last = {"state": document["state"], "seconds": round(seconds, 1), "log": [line[:300] for line in lines]}
    document["attempts"][-1] |= last
    write_json(document, path)
    return document


def piece(given: Namespace, name: str, seconds: float) -> str:
    """Measure a piece in a process of its own, anew after a CUDA error while there is time; return how it ended."""
    log, end = given.work / f"{name}.log", time.monotonic() + seconds
    grace = min(GRACE, MOST_GRACE * seconds)
    while (left := end - time.monotonic()) > LEAST:
        log.write_bytes(b"")
        arguments = [str(given.out), "--piece", name, "--until", str(end - grace), "--call", given.call]
        arguments += ["--device", given.device, "--work", str(given.work), *(["--tiny"] if given.tiny else [])]
        arguments += [*(["--data", str(given.data)] if given.data else [])]
        arguments += [*(["--commit", given.commit] if given.commit else [])]
        began = time.monotonic()
        status = attempt([sys.executable, "-u", __file__, *arguments], left, log)
        document = closed(given, name, status, time.monotonic() - began, log)
        if status != AGAIN:
            return str(document["state"])
    return "no time"


def state_of(given: Namespace, name: str) -> str:
    """Return how a piece stands in OUT; a failed row is missing."""
    path = given.out / f"{name}.json"
    missing: dict[str, Any] = {"state": "missing", "rows": {}}
    document = json.loads(path.read_text()) if path.exists() else missing
    failed = any("error" in row for row in document["rows"].values())
    return "rows failed" if document["state"] == "done" and failed else str(document["state"])


def main(arguments: list[str] | None = None) -> None:
    """Measure the pieces in order, or one here, or write the page."""
    given = options().parse_args(arguments)
    given.out = given.out.resolve()
    given.work = (given.work or given.out.with_name(f"{given.out.name}-work")).resolve()
    if given.page:
        paste(section(given.out), PAGE, "gpu")
        return
    if given.piece:
        print(measured(given))
        return
    names, end = wanted(given), time.monotonic() + 60 * given.minutes
    given.work.mkdir(parents=True, exist_ok=True)
    given.call = datetime.now(UTC).isoformat(timespec="seconds")
    for name in names:
        left, limit = end - time.monotonic(), None if given.tiny else PIECES[name].seconds
        if state_of(given, name) == "done" or left < LEAST:
            continue
        state = piece(given, name, left if limit is None else min(left, limit))
        print(f"{name}: {state}", flush=True)
    print("measured: " + "; ".join(f"{name}: {state_of(given, name)}" for name in PIECES))


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        print(error, file=sys.stderr)
        sys.exit(2)
