"""Suites side by side: how many images each breaks, for how many passes and seconds, and where they disagree.

    python benchmarks/suite.py runs/cifar10-small/pgd-7 runs/cifar10-small/seat --data TEST.parquet --images 1000

Each model (a run folder, or FILE.py:function) meets the same images under planish's suites, the public AutoAttack
(PyPI: pyautoattack), torchattacks' AutoAttack, CR Attack and the strongest that foolbox offers in the ball. Passes of
single images are counted by one hook for all; whatever a suite returns is judged by one fresh float32 forward, and must
lie in the ball. With `--precision bf16` all search under autocast; images that fool only that arithmetic are given to a
peer again in float32. With `--survivors-only` the suites named after the reference get what that has left standing
alone, with `--nearest` so many by the margins of planish's suites: an image that it broke and a fresh forward confirmed
needs no second opinion. With `--late` they also get, in a second turn, the images that planish's suite broke only after
its first stage: which of them a peer alone would leave.
Seconds are wall time on an accelerator and processor time on a CPU, where other work must not count (run one thread,
OMP_NUM_THREADS=1, or add up those of all). A killed run goes on: planish's suites from their last chunk (their seconds
are then wall time, and the row says so), the others from their last `--chunk` images. Peers that are not installed are
left out, saying so. Per-image outcomes lie in OUT/MODEL/SUITE.npz or OUT/MODEL/SUITE/evaluation.npz, the table in
OUT/suite.json.
"""

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cr_attack import cr_attack
from numpy.typing import NDArray
from timing import RESULTS, Columns, Row, show
from torch import Tensor, nn

from planish.core.arguments import logits_of
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.core.modes import Counted, autocast
from planish.core.threat import ThreatModel
from planish.core.threat_texts import parse_threat
from planish.data import load
from planish.evaluation.evaluate import evaluate_steps
from planish.records.origin import provenance
from planish.records.statistics import Booleans, Estimate, paired_interval
from planish.runs.judge import EvaluationConfig, evaluate_into, load_model
from planish.runs.names import name_of
from planish.storage.files import write_arrays, write_json
from planish.storage.reading import read_arrays

Peer = Callable[[nn.Module, Batch, ThreatModel], Tensor]
"""Returns adversarial images (N, ...)."""
LATE = ", late"
"""Stands after the name of a suite that was given what another broke late."""
COLUMNS: Columns = {
    "robust": lambda row: row["robust"],
    "passes": lambda row: f"{row['passes']:.1f}",
    "forwards": lambda row: f"{row['forwards']:.1f}",
    "backwards": lambda row: f"{row['backwards']:.1f}",
    "seconds": lambda row: f"{row['seconds']:.0f}",
    "cost": lambda row: f"1/{row['cheaper']:.1f}" if row["cheaper"] else "",
    "time": lambda row: f"1/{row['faster']:.1f}" if row["faster"] else "",
}


class Autocast(nn.Module):
    """A model that computes in bfloat16 where that is safe and returns float32 logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K)."""
        with autocast(x, "bf16"):
            logits: Tensor = self.model(x)
        return logits.float()


class Outcome(NamedTuple):
    """Which images stand (N,), and the single-image forwards, backwards and seconds, by a clock, that it took.

    tried: how many images it was given. margin: (N,) the largest that it reached, where it tells. late: (N,) broken by
    another stage than the first, where it has stages.
    """

    standing: Booleans
    forwards: int
    backwards: int
    seconds: float
    clock: str
    tried: int
    margin: NDArray[Any] | None = None
    late: Booleans | None = None


def public_autoattack(model: nn.Module, batch: Batch, threat: ThreatModel, stages: tuple[str, ...] = ()) -> Tensor:
    """The public AutoAttack, standard version. stages: these of it alone."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(model, norm=threat.name, eps=threat.radius - 1e-6, seed=0, device=batch.x.device)
    attack.attacks_to_run = list(stages) or attack.attacks_to_run
    found: Tensor = attack.run_standard_evaluation(batch.x, batch.labels, batch_size=len(batch.x))[0]
    return found


def torchattacks_autoattack(model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
    """torchattacks' AutoAttack: 10 steps where 100 are published."""
    import torchattacks

    found: Tensor = torchattacks.AutoAttack(
        model, norm=threat.name, eps=threat.radius - 1e-6, n_classes=int(model(batch.x[:1]).shape[1]), seed=0
    )(batch.x, batch.labels)
    return found


def foolbox_best(model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
    """foolbox has no margin or target in the ball: PGD of 50 steps is its best, 10 times on what still stands."""
    import foolbox.attacks as fa
    from foolbox.models.pytorch import PyTorchModel

    pgd = {"Linf": fa.LinfPGD, "L2": fa.L2PGD}[threat.name](rel_stepsize=0.1, steps=50)
    seen = PyTorchModel(model.eval(), bounds=(0, 1), device=batch.x.device)
    torch.manual_seed(0)
    x_adv = batch.x.clone()
    broken = margin(model(x_adv).detach(), batch.labels) >= 0
    for _ in range(10):
        rows = (~broken).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        found = pgd(seen, batch.x[rows], batch.labels[rows], epsilons=threat.radius - 1e-6)
        x_adv[rows], broken[rows] = found[1], found[2]
    return x_adv


def own(name: str) -> Peer:
    """Return attacks of planish, their names with plus signs, as a peer that is given some images."""

    def peer(model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
        *_, last = evaluate_steps(model, batch, threat=threat, attacks=name.split("+"))
        return last.x_adv

    return peer


PEERS: dict[str, tuple[str, Peer]] = {
    "public AutoAttack": ("pyautoattack", public_autoattack),
    "public APGD-CE and APGD-T": ("pyautoattack", partial(public_autoattack, stages=("apgd-ce", "apgd-t"))),
    "torchattacks AutoAttack": ("torchattacks", torchattacks_autoattack),
    "foolbox PGD-50-10": ("foolbox", foolbox_best),
    "CR Attack": ("planish", cr_attack),
}


def options() -> ArgumentParser:
    """Return the command line."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", nargs="+", help="run folders or FILE.py:function")
    parser.add_argument("--data", required=True, help="the test set")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--peer-images", type=int, help="give peers, which are slow, only the first so many")
    parser.add_argument("--norm", default="Linf")
    parser.add_argument("--radius", default="8/255")
    parser.add_argument("--suites", default="planish-suite,autoattack," + ",".join(PEERS), help="names with commas")
    parser.add_argument("--survivors-only", action="store_true", help="those after the reference get what it left")
    parser.add_argument("--nearest", type=int, help="with --survivors-only: at most so many, of the largest margins")
    parser.add_argument("--late", action="store_true", help="with --survivors-only: they get what it broke late, too")
    parser.add_argument("--reference", default="autoattack", help="the suite that ratios and pairs refer to")
    parser.add_argument("--precision", default="float32", help="of all searches: float32 or bf16")
    parser.add_argument("--chunk", type=int, default=250, help="images that a peer is given at a time")
    parser.add_argument("--seed", type=int, default=0, help="of planish's suites")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "suite")
    return parser


def ours(given: Namespace, spec: str, name: str, folder: Path) -> Outcome:
    """Judge a model by a suite of planish; the record goes into the folder."""
    task = EvaluationConfig(
        given.data,
        parse_threat(given.norm, given.radius),
        (name,),
        given.images,
        seed=given.seed,
        precision=given.precision,
    )
    timed, fresh = folder / name / "processor.json", not (folder / name).exists()
    began = time.process_time()
    *_, record = evaluate_into(load_model(spec, given.device), task, folder / name, device=given.device, resume=True)
    if fresh and given.device == "cpu":
        write_json({"seconds": time.process_time() - began}, timed)
    columns = record.columns
    wall = record.meta["clean"]["seconds"] + sum(column.seconds for column in columns)
    return Outcome(
        record.survivors(),
        record.meta["clean"]["forwards"] + sum(column.forwards for column in columns),
        sum(column.backwards for column in columns),
        *((json.loads(timed.read_text())["seconds"], "processor") if timed.exists() else (wall, "wall")),
        len(record.labels),
        np.fmax.reduce([record.clean_margin, *(column.margin for column in columns)]),
        record.correct() & ~record.survivors() & ~columns[0].broken,
    )


def theirs(given: Namespace, spec: str, name: str, folder: Path, first: Outcome | None, late: str = "") -> Outcome:
    """Judge a model by a peer, so many images at a time; what is in a file is done and not done again.

    first: the outcome whose survivors alone it is given, nearest first; None = all images. late: it is given what that
    broke late instead, and this is added to the file's name.
    """
    path = folder / f"{f'{name}{late}'.replace(', ', '-').replace(' ', '-')}.npz"
    peer, model = PEERS[name][1] if name in PEERS else own(name), load_model(spec, given.device).model
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # peers view gradients
    most = given.images if first else min(given.peer_images or given.images, given.images)
    whole = load(given.data, "test", most).as_batch()
    rows = np.arange(len(whole.x)) if first is None else nearest(first, given.nearest)
    if first is not None and late:
        rows = np.flatnonzero(first.late)
    done, spent = held(path, whole.indices.numpy())
    left = np.array([row for row in rows if row not in done], dtype=np.int64)
    for part in (left[start : start + given.chunk] for start in range(0, len(left), given.chunk)):
        batch = whole.select(torch.from_numpy(part))
        batch = Batch(*(value.to(given.device).contiguous() for value in batch[:3]))
        standing, cost = judged(model, batch, parse_threat(given.norm, given.radius), peer, given.precision)
        spent, done = spent + cost, done | dict(zip(part.tolist(), standing.tolist(), strict=True))
        order = np.array(sorted(done) if first is None or late else by_margin(first, done), dtype=np.int64)
        values = np.array([done[row] for row in order], dtype=bool)
        write_arrays(path, standing=values, spent=spent, indices=whole.indices.numpy()[order])
    clock = "processor" if given.device == "cpu" else "wall"
    outcome = np.zeros(len(rows), bool) if first is None else first.standing.copy()
    outcome[list(done)] = list(done.values())
    return Outcome(outcome, int(spent[0]), int(spent[1]), float(spent[2]), clock, len(done))


def held(path: Path, indices: NDArray[Any]) -> tuple[dict[int, bool], NDArray[Any]]:
    """Return what a peer's file says of images, by position in these, and what was spent. Raises BadInput."""
    if not path.exists():
        return {}, np.zeros(3)
    kept = read_arrays(path)
    if not np.isin(kept["indices"], indices).all():
        raise BadInput(f"{path} is of other images; choose another --out")
    rows = np.searchsorted(indices, kept["indices"])
    return dict(zip(rows.tolist(), kept["standing"].tolist(), strict=True)), kept["spent"]


def left_by(reference: str, outcomes: dict[str, Outcome]) -> Outcome | None:
    """Return the outcome of the reference, if it is there, with the largest margins that any suite so far reached."""
    margins = [outcome.margin for outcome in outcomes.values() if outcome.margin is not None]
    first = outcomes.get(reference)
    return first and first._replace(margin=np.fmax.reduce(margins))


def nearest(first: Outcome, most: int | None) -> list[int]:
    """Return the positions of the images that stand, those of the largest margins first."""
    return by_margin(first, np.flatnonzero(first.standing).tolist())[:most]


def by_margin(first: Outcome, rows: Iterable[int]) -> list[int]:
    """Return these positions, those of the largest margins first."""
    assert first.margin is not None
    return sorted(rows, key=lambda row: (-first.margin[row], row))  # type: ignore[index]


def judged(
    model: nn.Module, batch: Batch, threat: ThreatModel, peer: Peer, precision: str
) -> tuple[Booleans, NDArray[Any]]:
    """Return which images stand, and forwards, backwards and seconds. Images outside the ball are an error."""
    counted = Counted(model).eval()
    clock = time.process_time if batch.x.device.type == "cpu" else time.perf_counter
    began = clock()
    fast = Autocast(counted).eval() if precision == "bf16" else counted
    x_adv = peer(fast, batch, threat).detach().clone()
    with torch.no_grad():
        fooled = margin(fast(x_adv), batch.labels) >= 0
    only_fast = (fooled & (margin(logits_of(counted, x_adv), batch.labels) < 0)).nonzero().squeeze(1)
    if len(only_fast):
        x_adv[only_fast] = peer(counted, batch.select(only_fast), threat).detach()
    cost = np.array([counted.forwards, counted.backwards, clock() - began])
    if not bool(threat.feasible(x_adv, batch.x).all()):
        raise RuntimeError(f"images outside the ball, up to {float(threat.norm(x_adv - batch.x).max()):g}")
    clean, found = (margin(logits_of(model, x), batch.labels) < 0 for x in (batch.x, x_adv))
    return (clean & found).cpu().numpy(), cost


def rows_of(model: str, outcomes: dict[str, Outcome], reference: str) -> list[Row]:
    """Return a row for each suite, with its cost for one image and relative to the reference's."""
    rows = []
    for name, outcome in outcomes.items():
        base = outcomes.get(reference)
        base = base if base is not None and base.tried == outcome.tried else None
        images, passes = max(outcome.tried, 1), outcome.forwards + outcome.backwards
        rows.append(
            {
                "model": model,
                "suite": name,
                "robust": str(Estimate.of(outcome.standing)),
                "accuracy": float(outcome.standing.mean()),
                "images": outcome.tried,
                "passes": passes / images,
                "forwards": outcome.forwards / images,
                "backwards": outcome.backwards / images,
                "seconds": outcome.seconds,
                "clock": outcome.clock,
                "cheaper": (base.forwards + base.backwards) / passes if base else None,
                "faster": base.seconds / outcome.seconds if base else None,
            }
        )
    return rows


def pairs_of(model: str, outcomes: dict[str, Outcome]) -> list[Row]:
    """Return, for each two suites, the positions of the images that only one of them broke, of those that both had."""
    rows = []
    for one, other in combinations(outcomes, 2):
        both = min(len(outcomes[one].standing), len(outcomes[other].standing))
        first, second = outcomes[one].standing[:both], outcomes[other].standing[:both]
        gap = paired_interval(first, second)
        rows.append(
            {
                "model": model,
                "first": one,
                "second": other,
                "images": both,
                "difference": [gap.value, gap.low, gap.high],
                "broken by the second only": np.flatnonzero(first & ~second).tolist(),
                "broken by the first only": np.flatnonzero(second & ~first).tolist(),
            }
        )
    return rows


def about(given: Namespace) -> dict[str, Any]:
    """Return where the numbers come from: setting, versions, device, commit and command."""
    origin = provenance(given.device)
    packages = {package for package, _ in PEERS.values() if find_spec(package)}
    origin["versions"] |= {package: version(package) for package in sorted(packages)}
    return {**origin, "setting": {key: str(value) for key, value in vars(given).items()}}


def main(arguments: list[str] | None = None) -> None:
    """Run all suites on all models and write the table."""
    given = options().parse_args(arguments)
    wanted = [name.strip() for name in given.suites.split(",")]
    missing = [name for name in wanted if name in PEERS and not find_spec(PEERS[name][0])]
    for name in missing:
        print(f"{name} is left out: {PEERS[name][0]} is not installed")
    rows: list[Row] = []
    pairs: list[Row] = []
    for spec in given.models:
        model = name_of(spec)
        outcomes: dict[str, Outcome] = {}
        for name in (name for name in wanted if name not in missing):
            first = left_by(given.reference, outcomes) if given.survivors_only else None
            if name in PEERS or first is not None:
                outcomes[name] = theirs(given, spec, name, given.out / model, first)
                if first is not None and given.late:
                    outcomes[f"{name}{LATE}"] = theirs(given, spec, name, given.out / model, first, LATE)
            else:
                outcomes[name] = ours(given, spec, name, given.out / model)
        rows += rows_of(model, outcomes, given.reference)
        pairs += pairs_of(model, outcomes)
        write_json({**about(given), "rows": rows, "pairs": pairs}, given.out / "suite.json")
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        show(model, own, {"suite": lambda row: row["suite"], **COLUMNS})
    for pair in pairs:
        print(pair)


if __name__ == "__main__":
    main()
