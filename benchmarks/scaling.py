"""What training at a paper's setting costs on 1, 8 and 64 GPUs: counted work over assumed rates, and the papers' times.

    python benchmarks/scaling.py [--tflops 50] [--link 100] [--network 12.5] [--cores 8]
    python benchmarks/scaling.py --count [--only seat-table-1] [--scale cpu]

--count counts the floating point operations of one training step of each row, on networks and images of the row's own
size, and writes them into --out; this takes some minutes on a CPU. Without it the tables and the figure are made of
what was counted and of rates that are assumed: no accelerator is timed. --page and --figure say where they go.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from timing import RESULTS, Columns, Row, markdown, paste
from torch import nn

from planish.core.batch import Batch
from planish.core.randomness import initialised, seeded
from planish.core.threat import ThreatModel
from planish.methods import Method
from planish.methods.standard import Standard
from planish.records.origin import provenance
from planish.registry import components
from planish.report.drawing import INK, MUTED, blank, colour_of, legend, styled, to_png
from planish.report.tables import seconds_text
from planish.reproduce.estimate import TRAIN
from planish.reproduce.scales import SCALES, scaled
from planish.reproduce.tables import PaperTable, table
from planish.runs.config import Experiment
from planish.runs.run import architecture
from planish.storage.files import write_bytes, write_json
from planish.storage.reading import read_json
from planish.training.cost import step_operations

ROOT = Path(__file__).parents[1]
PAGE, FIGURE = ROOT / "docs" / "scaling.md", ROOT / "docs" / "images" / "scaling.png"
GPUS = (1, 8, 64)
TRAININGS = {
    "llr-table-3": ("adv", "llr", "llr-16"),
    "finlay-table-1-imagenet": ("undefended", "l2-01"),
    "llr-table-2": ("wrn-28-8-adv", "wrn-28-8-trades", "wrn-28-8-llr", "wrn-40-8-llr"),
    "seat-table-1": ("pgd-at", "trades", "fgsm-at", "grad-align", "gat", "seat", "planish-at"),
    "finlay-table-1": ("undefended", "adversarial", "l1-01"),
}
"""Rows of the papers' tables, as planish reproduces them."""
EACH = ("finlay-table-1-imagenet", "undefended")
"""The network on which every method is counted, at 224 pixels."""
METHODS = "methods"
SMALL = 64
"""Pixels at which each method's step is compared with a standard one: convolutions grow alike with the area."""
CLASSES = 10
"""Of the network for each method: LIET asks it for each class."""
DRAWN = (("llr-table-3", "adv"), ("llr-table-3", "llr"), EACH, ("seat-table-1", "seat"))
FLOAT32 = 4


class Machine(NamedTuple):
    """What a paper trained on. epochs: that its time is of, None = the setting's."""

    devices: int
    name: str
    epochs: int | None = None


MACHINES = {
    "llr-table-3": Machine(128, "TPUv3 core", 110),
    "finlay-table-1-imagenet": Machine(4, "consumer GPU"),
    "finlay-table-1": Machine(1, "GeForce 1080 Ti"),
    "seat-table-1": Machine(1, "GPU, not named"),
}


@dataclass(frozen=True)
class Cluster:
    """Rates that are assumed. flops: of one GPU, in practice. link, network: bytes a second of an exchange of gradients
    within a machine of 8 GPUs and between machines. cores: of a CPU, that decode for one GPU. decoded: images a second
    of one core, which benchmarks/loader.py has measured. stored: bytes of an image file.
    """

    flops: float
    link: float
    network: float
    cores: int
    decoded: float
    stored: float
    machine: int = 8

    def seconds(self, row: Row, gpus: int) -> dict[str, float]:
        """Return what one step takes at least: computing, exchanging gradients in a ring, decoding images."""
        bandwidth = self.link if gpus <= self.machine else self.network
        return {
            "compute": row["batch"] * row["work"] / (gpus * self.flops),
            "communication": 2 * (gpus - 1) / gpus * row["gradient_bytes"] / bandwidth,
            "loader": row["batch"] / (gpus * self.cores * self.decoded) if row["streamed"] else 0.0,
        }

    def step(self, row: Row, gpus: int) -> tuple[str, float]:
        """Return what a step waits for, and how long: the slowest of the three, as if they overlapped wholly."""
        found = self.seconds(row, gpus)
        return max(found.items(), key=lambda item: item[1])

    def hours(self, row: Row, gpus: int) -> float:
        """Return what the training takes at least."""
        return row["epochs"] * row["images"] / row["batch"] * self.step(row, gpus)[1] / 3600

    def rate(self, row: Row) -> float:
        """Return the images a second that one GPU trains on while it waits for nothing."""
        return self.flops / float(row["work"])


def operations(experiment: Experiment, shape: tuple[int, ...], classes: int, method: Method) -> float:
    """Return the operations for one image in a training step: counted on a random image of that shape (C, H, W), or
    on two, since a batch norm over logits takes no fewer.
    """
    threat: ThreatModel = experiment.threat.model
    with initialised(0):
        model = architecture(experiment.model.name, experiment.model.options, classes, shape[0])
    images = 2 if any(isinstance(part, nn.BatchNorm1d) for part in model.modules()) else 1
    x, indices = torch.rand(images, *shape, generator=seeded(0)), torch.arange(images)
    return step_operations(method, model, Batch(x, indices, indices), threat) / images


def counted(name: str, row: str, scale: str = "full") -> Row:
    """Return what a row's training is and costs: the mean over its epochs where its images grow."""
    found = table(name)
    own = found.rows[row].experiment
    assert own is not None
    experiment = scaled(own, SCALES[scale])
    channels, side, _ = found.head.shape
    sides = Counter(experiment.data.sides(experiment.settings.epochs) or [side])
    methods: dict[str, Method] = {"work": experiment.training_method, "standard": Standard()}
    shapes = {size: (channels, size, size) for size in sides}
    each = {
        key: {size: operations(experiment, shape, found.head.classes, method) for size, shape in shapes.items()}
        for key, method in methods.items()
    }
    spread = {key: fmean([by_size[size] for size in sides.elements()]) for key, by_size in each.items()}
    with torch.device("meta"):
        model = architecture(experiment.model.name, experiment.model.options, found.head.classes, channels)
    parameters = sum(part.numel() for part in model.parameters())
    return {
        "table": name,
        "row": row,
        "printed": found.rows[row].printed,
        "network": _network(experiment),
        "method": experiment.method.name,
        "sizes": sorted(sides),
        "parameters": parameters,
        "gradient_bytes": FLOAT32 * parameters,
        **spread,
        "epochs": experiment.settings.epochs,
        "batch": experiment.settings.batch_size,
        "images": TRAIN[own.data.source],
        "streamed": own.data.source == "imagenet",
        "hours": _hours(found, row, experiment.settings.epochs),
    }


def _network(experiment: Experiment) -> str:
    activation = experiment.model.options.get("activation")
    return ", ".join(filter(None, [experiment.model.name, activation]))


def _hours(found: PaperTable, row: str, epochs: int) -> float | None:
    """Return the hours that a paper prints for a training, or its minutes an epoch times the epochs."""
    text = found.rows[row].paper.get("time")
    if text is None:
        return None
    return float(text) * epochs / 60 if "min/epoch" in found.columns["time"].printed else float(text)


def each_method(scale: str = "full") -> Iterator[Row]:
    """Yield what an image costs in a step of each method as it comes, on the network that all have in common."""
    whole, found = counted(*EACH, scale), table(EACH[0])
    own = found.rows[EACH[1]].experiment
    assert own is not None
    experiment, shape = scaled(own, SCALES[scale]), (found.head.shape[0], SMALL, SMALL)
    standard = operations(experiment, shape, CLASSES, Standard())
    at_once = operations(experiment, found.head.shape, found.head.classes, Standard())
    for name, build in components("methods").items():
        work = at_once * operations(experiment, shape, CLASSES, build()) / standard
        yield {**whole, "method": name, "work": work, "standard": at_once, "epochs": 1}


def count(given: Namespace) -> None:
    """Count some parts, or all, and write them beside the others that are there, with where they come from."""
    asked = given.only or [*TRAININGS, METHODS]
    rows = []
    for name in (part for part in asked if part != METHODS):
        for row in TRAININGS[name]:
            rows.append(counted(name, row, given.scale))
            print(f"{name} {row}: {rows[-1]['work'] / 1e9:,.1f} GFLOP an image", flush=True)
    each = sorted(each_method(given.scale), key=lambda row: float(row["work"])) if METHODS in asked else []
    before = read_json(given.out, "remove it to count anew") if given.out.exists() else {"rows": [], METHODS: []}
    rows += [row for row in before["rows"] if row["table"] not in asked]
    rows.sort(key=lambda row: [*TRAININGS].index(row["table"]))
    about = {**provenance("cpu"), "setting": {"scale": given.scale}}
    write_json({**about, "rows": rows, METHODS: each or before[METHODS]}, given.out)


def _size(row: Row) -> str:
    return ", ".join(map(str, row["sizes"]))


def work_table(rows: Sequence[Row]) -> str:
    """Return what was counted."""
    columns: Columns = {
        "table": lambda row: f"`{row['table']}`",
        "row": lambda row: row["printed"],
        "network": lambda row: row["network"],
        "pixels": _size,
        "parameters, M": lambda row: f"{row['parameters'] / 1e6:.1f}",
        "standard step, GFLOP an image": lambda row: f"{row['standard'] / 1e9:.1f}",
        "its step": lambda row: f"{row['work'] / row['standard']:.2f}",
        "epochs": lambda row: str(row["epochs"]),
        "batch": lambda row: str(row["batch"]),
        "whole training, EFLOP": lambda row: f"{_whole(row) / 1e18:.3f}",
    }
    return markdown(rows, columns)


def _whole(row: Row, epochs: int | None = None) -> float:
    """Return the operations of the whole training."""
    return float((epochs or row["epochs"]) * row["images"] * row["work"])


def hours_table(rows: Sequence[Row], cluster: Cluster) -> str:
    """Return how long each training takes at least, and which line bounds it."""

    def cell(row: Row, gpus: int) -> str:
        bound = cluster.step(row, gpus)[0]
        return f"{seconds_text(3600 * cluster.hours(row, gpus))}, {bound}"

    columns: Columns = {
        "row": _named,
        "GPU-hours of computing": lambda row: f"{_whole(row) / cluster.flops / 3600:,.2f}",
        **{f"{gpus} GPU{'s' * (gpus > 1)}": lambda row, gpus=gpus: cell(row, gpus) for gpus in GPUS},
        f"images a GPU, of {GPUS[-1]}": lambda row: f"{row['batch'] / GPUS[-1]:g}",
    }
    return markdown(rows, columns)


def _named(row: Row) -> str:
    return f"{row['printed']}; {row['network']}"


def lines_table(rows: Sequence[Row], cluster: Cluster) -> str:
    """Return the three lines of a step on 8 and on 64 GPUs, and what the loader must bring."""

    def cell(row: Row, gpus: int) -> str:
        return " / ".join(f"{1000 * value:,.1f}" for value in cluster.seconds(row, gpus).values())

    columns: Columns = {
        "row": _named,
        "gradients, MB": lambda row: f"{row['gradient_bytes'] / 1e6:.0f}",
        **{f"ms a step, {gpus} GPUs": lambda row, gpus=gpus: cell(row, gpus) for gpus in GPUS[1:]},
        "images/s a GPU": lambda row: f"{cluster.rate(row):,.0f}",
        "cores a GPU": lambda row: f"{cluster.rate(row) / cluster.decoded:.1f}" if row["streamed"] else "",
        "MB/s read, 64 GPUs": lambda row: f"{_read(row, cluster):,.0f}" if row["streamed"] else "",
    }
    return markdown(rows, columns)


def _read(row: Row, cluster: Cluster) -> float:
    return GPUS[-1] * cluster.rate(row) * cluster.stored / 1e6


def papers_table(rows: Sequence[Row]) -> str:
    """Return the papers' own times beside what was counted."""
    timed = [row for row in rows if row["hours"] is not None]
    first = {row["table"]: row for row in reversed(timed)}

    def against(row: Row, value: Any) -> str:
        return f"{value(first[row['table']]) / value(row):.2f}"

    columns: Columns = {
        "table": lambda row: f"`{row['table']}`",
        "row": lambda row: row["printed"],
        "printed": lambda row: f"{row['hours']:.4g} h on {MACHINES[row['table']].devices} {_machine(row)}",
        "device-hours": lambda row: f"{MACHINES[row['table']].devices * row['hours']:,.4g}",
        "counted, EFLOP": lambda row: f"{_whole(row, MACHINES[row['table']].epochs) / 1e18:.3f}",
        "TFLOP/s a device, by both": lambda row: f"{_implied(row) / 1e12:.2f}",
        "first row's time over it": lambda row: against(row, lambda one: one["hours"]),
        "first row's work over it": lambda row: against(row, _whole),
    }
    return markdown(timed, columns)


def _machine(row: Row) -> str:
    machine = MACHINES[row["table"]]
    return machine.name + "s" * (machine.devices > 1)


def _implied(row: Row) -> float:
    """Return the operations a second of one device that a paper's time and our count make together."""
    machine = MACHINES[row["table"]]
    return _whole(row, machine.epochs) / (machine.devices * row["hours"] * 3600)


def methods_table(rows: Sequence[Row], cluster: Cluster) -> str:
    """Return what an epoch of ImageNet costs with each method."""
    columns: Columns = {
        "method": lambda row: f"`{row['method']}`",
        "its step": lambda row: f"{row['work'] / row['standard']:.2f}",
        "GFLOP an image": lambda row: f"{row['work'] / 1e9:.1f}",
        "images/s a GPU": lambda row: f"{cluster.rate(row):,.0f}",
        "GPU-hours an epoch": lambda row: f"{_whole(row) / cluster.flops / 3600:.2f}",
        **{f"{gpus} GPUs wait for": lambda row, gpus=gpus: cluster.step(row, gpus)[0] for gpus in GPUS[1:]},
    }
    return markdown(rows, columns)


def tables(found: dict[str, Any], cluster: Cluster) -> dict[str, str]:
    """Return the page's tables by the names of their places."""
    rows = found["rows"]
    return {
        "counted": work_table(rows),
        "hours": hours_table(rows, cluster),
        "lines": lines_table(rows, cluster),
        "papers": papers_table(rows),
        METHODS: methods_table(found[METHODS], cluster),
    }


@styled()
def drawn(rows: Sequence[Row], cluster: Cluster) -> Any:
    """Return the figure: hours over GPUs, and the straight line of computing alone."""
    figure = blank(3.6)
    axes = figure.add_subplot()
    counts = [2**power for power in range(7)]
    for place, name in enumerate(DRAWN):
        row = next(row for row in rows if (row["table"], row["row"]) == name)
        hours = [cluster.hours(row, gpus) for gpus in counts]
        alone = [_whole(row) / (cluster.flops * gpus * 3600) for gpus in counts]
        axes.plot(counts, alone, color=MUTED, linewidth=0.8, linestyle=":")
        axes.plot(counts, hours, "o-", color=colour_of(place), markersize=4, label=f"{row['network']}: {row['method']}")
    axes.axvline(cluster.machine, color=INK, linewidth=0.6, linestyle="--")
    axes.set(xscale="log", yscale="log", xlabel="GPUs; dashed: a machine; dotted: computing", ylabel="Hours, at least")
    axes.set_xticks(counts, [str(gpus) for gpus in counts])
    axes.yaxis.set_major_formatter(lambda hours, _: f"{hours:g}")
    axes.minorticks_off()
    legend(figure, axes)
    return figure


def decoded() -> float:
    """Return the images a second that one core decodes, as benchmarks/loader.py has measured."""
    found = read_json(RESULTS / "loader" / "loader.json", "measure it with benchmarks/loader.py")
    return float(next(row["images_per_second"] for row in found["rows"] if row["workers"] == 0))


def cluster_of(given: Namespace) -> Cluster:
    """Return the rates that are asked for."""
    return Cluster(
        flops=given.tflops * 1e12,
        link=given.link * 1e9,
        network=given.network * 1e9,
        cores=given.cores,
        decoded=decoded(),
        stored=given.stored * 1e3,
    )


def parsed(arguments: Sequence[str] | None) -> Namespace:
    """Return the options."""
    options = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    options.add_argument("--count", action="store_true", help="count the rows anew")
    options.add_argument("--only", action="append", choices=(*TRAININGS, METHODS), help="with --count: this part alone")
    options.add_argument("--scale", default="full", choices=SCALES, help="with --count: cut down, for a trial")
    options.add_argument("--tflops", type=float, default=50.0, help="assumed: 10^12 operations a second of one GPU")
    options.add_argument("--link", type=float, default=100.0, help="assumed: GB/s between GPUs of one machine")
    options.add_argument("--network", type=float, default=12.5, help="assumed: GB/s between machines")
    options.add_argument("--cores", type=int, default=8, help="assumed: cores that decode for one GPU")
    options.add_argument("--stored", type=float, default=115.0, help="assumed: kB of an image file")
    options.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    options.add_argument("--page", type=Path, default=PAGE)
    options.add_argument("--figure", type=Path, default=FIGURE)
    return options.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, or make the page's tables and the figure of what was counted."""
    given = parsed(arguments)
    torch.set_num_threads(1)
    if given.count:
        return count(given)
    found, cluster = read_json(given.out, "count first: --count"), cluster_of(given)
    for name, text in tables(found, cluster).items():
        paste(f"\n{text}\n", given.page, name)
    write_bytes(to_png(drawn(found["rows"], cluster)), given.figure)


if __name__ == "__main__":
    main()
