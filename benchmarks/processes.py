"""Training in several processes: what they cost, and whether kills cost anything.

    python benchmarks/processes.py [--kills 20] [--processes 1,2,4,8] [--steps 30] [--seed 0] [--out FILE.md]

Steps: each number of processes trains on the same batches of 128 images, and on 128 images each; the median time of a
step, and of what the processes tell each other in it, measured alone; each has one thread. With more processes than
cores the time of a step grows with their number. It wants an otherwise idle machine.
Kills: of two processes one is killed with SIGKILL at random moments, again and again; the run must end by itself with
the weights of an undisturbed one.
"""

import argparse
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from planish.core.batch import Batch
from planish.core.threat import Linf
from planish.methods import StepContext
from planish.methods.adversarial import FGSMAT
from planish.models.small_cnn import small_cnn
from planish.runs.run import read_history, read_weights
from planish.storage.files import write_text
from planish.training.processes import Group, Part, joined
from planish.training.settings import Settings
from planish.training.step import Bound, Stepper

BATCH, WARM = 128, 3
MODELS = {"tiny": (4, 8), "small": (32, 32)}
"""Width of a small-cnn and side of its images."""
EPOCHS = 40
TRAIN = ["train", "--data", "digits", "--method", "fgsm", "--device", "cpu", "--processes", "2"]
SET = ["threat.radius=0.1", "model.width=8", f"settings.epochs={EPOCHS}", "settings.save_minutes=0"]


@dataclass(frozen=True)
class Work:
    """What is measured: a model by name, how many processes, and how many images they have in all."""

    model: str
    processes: int
    images: int


def stepped(group: Group, work: Work, steps: int) -> tuple[float, float]:
    """Return the median seconds of a step and of its exchanges alone."""
    width, side = MODELS[work.model]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small_cnn(classes=10, channels=3, width=width, activation="relu")
        x, labels = torch.rand(work.images, 3, side, side), torch.randint(10, (work.images,))
    batch = Batch(x, labels).select(group.share.rows(work.images))
    bound = Bound(model.train(), FGSMAT(), Linf(0.05), "float32")
    stepper, part = Stepper(bound, group.wrapped(bound), Settings(), group), Part(group, batch, work.images)
    gradient = torch.zeros(sum(weight.numel() for weight in model.parameters()))
    whole, exchange = list[float](), list[float]()
    for step in range(WARM + steps):
        whole.append(timed(lambda step=step: one_step(stepper, part, model, step)))
        exchange.append(timed(lambda: exchanged(group, part, model, gradient)))
    return statistics.median(whole[WARM:]), statistics.median(exchange[WARM:])


def timed(call: "object") -> float:
    """Return the seconds of a call that all processes begin at the same time."""
    if dist.is_initialized():
        dist.barrier()
    began = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - began


def one_step(stepper: Stepper, part: Part, model: nn.Module, step: int) -> None:
    model.zero_grad()
    context = StepContext(part.noise(torch.Generator().manual_seed(step)), mean=part.mean)
    loss = stepper.backward(part, context, 1, last=True)
    part.united({"loss": loss.total.detach()}, model)


def exchanged(group: Group, part: Part, model: nn.Module, gradient: torch.Tensor) -> None:
    group.total(gradient)
    part.united({"loss": gradient[0]}, model)


def _measured(number: int, work: Work, steps: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": work.processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "localhost"})
    with joined() as group:
        torch.save(torch.tensor(stepped(group, work, steps)), folder / f"{number}.pt")
    os._exit(0)  # Python's own end can abort in a thread of gloo


def measured(work: Work, steps: int) -> tuple[float, float]:
    """Return the median seconds of a step and of its exchanges, of the process that took longest."""
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        free.close()
        multiprocessing.spawn(_measured, (work, steps, port, Path(name)), work.processes)
        found = [torch.load(path, weights_only=True) for path in Path(name).glob("*.pt")]
    step, exchange = torch.stack(found).amax(0).tolist()
    return step, exchange


def steps_table(processes: Sequence[int], steps: int) -> list[str]:
    """Return the rows of a table of steps."""
    rows = [
        "| Model | Images a step | Processes | Step | Exchanges in it | Images a second |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for model in MODELS:
        works = {Work(model, count, images): None for count in processes for images in (BATCH, BATCH * count)}
        for work in sorted(works, key=lambda work: (work.images != BATCH, work.processes)):
            step, exchange = measured(work, steps)
            cells = (model, work.images, work.processes, f"{1e3 * step:.1f} ms", f"{1e3 * exchange:.1f} ms")
            rows.append(f"| {' | '.join(map(str, cells))} | {work.images / step:,.0f} |")
    return rows


def workers(launcher: int) -> list[int]:
    """Return the processes that one has started."""
    path = Path(f"/proc/{launcher}/task/{launcher}/children")
    return [int(child) for child in path.read_text(encoding="ascii").split()]


def start(folder: Path, name: str, kills: int) -> "subprocess.Popen[str]":
    overrides = [part for each in SET for part in ("--set", each)]
    command = [sys.executable, "-m", "planish", *TRAIN, *overrides, "--out", name, "--max-restarts", str(kills + 2)]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def killed(folder: Path, kills: int, chance: random.Random) -> list[str]:
    """Train once alone and once with kills; return what was seen."""
    assert start(folder, "alone", 0).wait() == 0
    running, done = start(folder, "killed", kills), 0
    while running.poll() is None and done < kills:
        time.sleep(chance.uniform(3.0, 9.0))  # some hit a start, some a step, some a file that is being written
        if len(children := workers(running.pid)) == 2:
            os.kill(chance.choice(children), signal.SIGKILL)
            done += 1
    _, said = running.communicate()
    runs = [read_weights(folder / name / "model.safetensors")[0] for name in ("alone", "killed")]
    same = all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    history = read_history(folder / "killed" / "metrics.jsonl", {})
    return [
        f"{done} kills, {said.count('was ended by SIGKILL')} restarts after them, exit code {running.returncode}.",
        f"{len(history)} of {EPOCHS} epochs; weights {'bit for bit' if same else 'NOT'} those of the undisturbed run.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", default="1,2,4,8")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cores = f"{os.cpu_count()} cores, PyTorch {torch.__version__}, {platform.system()}"
    lines = [
        f"## Several processes\n\n{cores}; FGSM-AT, gloo.\n",
        *steps_table([*map(int, given.processes.split(","))], given.steps),
    ]
    if given.kills:
        with tempfile.TemporaryDirectory() as folder:
            lines += ["", *killed(Path(folder), given.kills, random.Random(given.seed))]
    print("\n".join(lines))
    if given.out is not None:
        write_text("\n".join(lines) + "\n", given.out)


if __name__ == "__main__":
    main()
