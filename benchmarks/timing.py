"""What the benchmarks share: the problem, timing in turns, and the record."""

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.threat import Linf
from planish.models import build
from planish.records.origin import provenance
from planish.storage.files import write_json, write_text

Row = dict[str, Any]
Columns = Mapping[str, Callable[[Row], str]]
PEERS = {"torchattacks": "torchattacks", "foolbox": "foolbox", "adv_lib": "adv-lib", "pyautoattack": "pyautoattack"}
"""Modules of other libraries, and the packages that hold them."""
RESULTS = Path(__file__).parent / "results"
TIMES: Columns = {
    "time": lambda row: f"{row['ratio']:.2f}",
    "quartiles": lambda row: f"{row['low']:.2f}-{row['high']:.2f}",
    "ms": lambda row: f"{1000 * row['seconds']:.0f}",
}


class Timing(NamedTuple):
    """seconds: median. ratio: median of the rounds' ratios to the base; low, high: its quartiles."""

    seconds: float
    ratio: float
    low: float
    high: float


class Problem(NamedTuple):
    """A network in evaluation mode with random weights, images labelled as it classifies them, the ball."""

    model: nn.Module
    batch: Batch
    threat: Linf


def parser(description: str, name: str) -> ArgumentParser:
    """Return a parser of the options that all benchmarks have."""
    options = ArgumentParser(description=description)
    options.add_argument("--device", default="cpu")
    options.add_argument("--width", type=int, default=16, help="of PreActResNet-18")
    options.add_argument("--batch", type=int, default=32, help="number of images of 3x32x32")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    options.add_argument("--tiny", action="store_true", help="a problem that only shows that everything runs")
    return options


def problem(options: Namespace, activation: str) -> Problem:
    """Return the problem, the same for the same options. Laid out channels last, as `planish.fit` trains."""
    width, count, side = (2, 4, 8) if options.tiny else (options.width, options.batch, 32)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build("preact-resnet-18", classes=10, channels=3, width=width, activation=activation)
    model = model.to(options.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    x = torch.rand(count, 3, side, side).to(options.device, memory_format=torch.channels_last)
    with torch.no_grad():
        logits = model(x)
    return Problem(model, Batch(x, logits.argmax(1), torch.arange(count), logits), Linf(8 / 255))


def compare(
    candidates: Mapping[str, Callable[[], object]], rounds: int, *, base: str, device: str = "cpu"
) -> dict[str, Timing]:
    """Call every candidate once, then time all in turns."""
    for call in candidates.values():
        call()
    return in_turns(candidates, rounds, base=base, device=device)


def in_turns(
    candidates: Mapping[str, Callable[[], object]], rounds: int, *, base: str, device: str = "cpu"
) -> dict[str, Timing]:
    """Time every candidate once a round, in shuffled order, so that what else the machine does hits all alike.

    Each has been called before. On a CPU the clock is the process's own CPU time, which other programs disturb
    little: time one thread. On a GPU it is the wall clock, the device synchronised before and after each call.
    """
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        for name in Random(index).sample(names, len(names)):
            began = _now(device)
            candidates[name]()
            seconds[name].append(_now(device) - began)
    return {name: _timing(seconds[name], seconds[base]) for name in names}


def _now(device: str) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def _timing(seconds: Sequence[float], base: Sequence[float]) -> Timing:
    low, ratio, high = np.quantile(np.divide(seconds, base), (0.25, 0.5, 0.75)).tolist()
    return Timing(float(np.median(seconds)), ratio, low, high)


class Operations(TorchDispatchMode):
    """Counts what reaches the device, kernels and views: what a small network waits for on a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(call: Callable[[], object]) -> int:
    """Return the number of operations of one call, whatever the machine's load."""
    counter = Operations()
    with counter:
        call()
    return counter.count


def save(options: Namespace, rows: list[Row], setting: Mapping[str, Any]) -> None:
    """Write the rows with where they come from: setting, versions, device, commit and command."""
    about = provenance(options.device)
    about["versions"] |= {package: version(package) for module, package in PEERS.items() if find_spec(module)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json({**about, "setting": {**given(options), **setting}, "rows": rows}, options.out)


def given(options: Namespace) -> dict[str, Any]:
    """Return the options that shape the problem."""
    return {name: value for name, value in vars(options).items() if name not in ("out", "page")}


def markdown(rows: Sequence[Row], columns: Columns) -> str:
    """Return the rows as a table of Markdown, as docs/results.md has it."""
    lines = [list(columns), [":--" if place == 0 else "--:" for place, _ in enumerate(columns)]]
    lines += [[text(row) for text in columns.values()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def paste(text: str, page: Path, name: str) -> None:
    """Put a text between the page's two comments of that name."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    if not end:
        raise BadInput(f"{page} has no place for '{name}': it needs <!-- {name} --> and <!-- end of {name} -->")
    write_text(before + mark + text + end + after, page)


def show(title: str, rows: list[Row], columns: Columns) -> None:
    """Print the rows as a table; each column is a function of a row. The one thing here that needs `rich`."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False, collapse_padding=True)
    for name in columns:
        table.add_column(name, justify="right" if table.columns else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(text(row) for text in columns.values()))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
