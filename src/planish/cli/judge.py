"""`planish evaluate`, `audit`, `distances` and `verify`: a model on a test set."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from typer import Argument, Option

from planish.cli import corruptions as corrupted
from planish.cli import options, printing, shards, tables, terminal, threats, trust
from planish.cli.gate import gated
from planish.cli.pages import show_distances, write_page
from planish.cli.printing import printable
from planish.core.errors import BadInput

if TYPE_CHECKING:
    from planish.evaluation.at_work import OnChunk
    from planish.records.audit import Audit
    from planish.records.distances import Distances
    from planish.records.evaluation import Evaluation
    from planish.runs.corruptions import CommonCorruptions
    from planish.runs.judge import EvaluationConfig, LoadedModel

Record = TypeVar("Record", bound="Audit | Distances | Evaluation")
NO_ATTACK = "no attack is named; see: planish list attacks"


@printable
@gated
def evaluate(
    model: options.Model,
    data: options.Data,
    radius: options.MaybeRadius = None,
    norm: options.Norm = "Linf",
    threat: options.Threats = None,
    built_by: options.BuiltBy = None,
    attacks: options.Attacks = "planish-suite",
    surrogates: Annotated[str, Option(help="For transfer: other models with commas, each like MODEL.")] = "",
    name: Annotated[str | None, Option(help="What a report calls the model.")] = None,
    limit: options.Limit = None,
    size: options.Size = None,
    classes: options.Classes = None,
    precision: options.Precision = "float32",
    eot: options.Draws = 1,
    targets: options.Targets = None,
    eight_bit: options.EightBit = False,
    keep_images: options.KeepImages = False,
    corruptions: corrupted.Folder = None,
    corruption_baseline: corrupted.Baseline = None,
    shard: options.Share = None,
    after: options.After = None,
    workers: options.Workers = None,
    against: options.Against = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json_: options.Json = False,
    csv: options.Csv = None,
    quiet: options.Quiet = False,
) -> "Evaluation | None":
    """Attack a model on a test set, and write a report."""
    where = terminal.Where(out, resume, overwrite, quiet, batch_size, shards.shard_of(shard, workers))
    common = corrupted.asked(corruptions, corruption_baseline, where)
    given: dict[str, Any] = {"data": data, "norm": norm, "radius": radius, "threats": threat, "limit": limit}
    given |= {"attacks": terminal.names_in(attacks), "surrogates": terminal.names_in(surrogates), "seed": seed}
    given |= {"size": size, "classes": classes, "precision": precision, "eot": eot, "keep_images": keep_images}
    given |= {"shard": where.shard, "after": after, "targets": targets, "eight_bit": eight_bit}
    on, task = _asked("evaluate", device, given, lambda task: _check(task, against, workers))
    judged = _model(model, on, built_by, name)
    if dry_run:
        _tell("evaluation", model, where, json_, lambda plan: plan.evaluate(judged, task, on, built_by))
        return None
    folder = _evaluate(judged, where, shards.AskedWorkers(model, task, workers, on, built_by, against), common)
    then = threats.next_audit(model, task, radius, built_by=built_by, size=size, classes=classes)
    return _shown(folder, judged.name, where, json_, csv, against, then)


def _check(task: "EvaluationConfig", earlier: Path | None, workers: str | None) -> None:
    """Raise BadInput for what cannot be judged so, or not be compared with an earlier evaluation."""
    from planish.runs.judge import check_task

    if not task.attacks:
        raise BadInput(NO_ATTACK)
    if task.also and workers is not None:
        raise BadInput("several threats are judged in one process: leave --workers out, or give one threat")
    check_task(task)
    if earlier is not None:
        from planish.runs.against import check_earlier

        check_earlier(earlier, task)


def _shown(
    folder: Path,
    name: str,
    where: terminal.Where,
    json_: bool,
    csv: Path | None,
    earlier: Path | None,
    then: str | None,
) -> "Evaluation | None":
    """Write and print the page of an evaluation, beside an earlier one if there is one; return the record.

    then: the command to type next, if there is a ball to audit. Of a shard what it holds is printed, and None returned.
    """
    from planish.records.evaluation import load
    from planish.runs.judge import EVALUATION

    if where.shard:
        shards.show_shard(folder, json_)
        return None
    write_page([folder], folder, f"Robustness of {name}", json_, csv, earlier)
    record = load(folder / EVALUATION)
    if then is not None and not json_:
        terminal.print_line(f"next: {then}")
    return record


def _evaluate(
    judged: "LoadedModel",
    where: terminal.Where,
    asked: shards.AskedWorkers,
    common: "CommonCorruptions | None",
) -> Path:
    """Evaluate into a folder, under common corruptions too if there are any, and return it."""
    from planish.runs.judge import evaluate_into

    also: dict[str, Any] = {"device": asked.device, "built_by": asked.built_by, **where.choice}

    def begin(folder: Path, told: "OnChunk") -> "Iterator[Evaluation]":
        steps = evaluate_into(judged, asked.task, folder, on_chunk=told, **also)
        if asked.earlier is None:
            return steps
        from planish.runs.against import comparable

        return comparable(steps, asked.earlier, judged.name)

    folder, _ = _work(
        begin,
        ("evaluation", judged.name, where),
        1 + len(asked.task.attacks) * len(asked.task.threats),
        _last_attack,
        asked,
    )
    corrupted.measure(judged, common, folder, where, asked)
    return folder


@printable
@gated
def audit(
    model: options.Model,
    data: options.Data,
    radius: options.Radius,
    norm: options.Norm = "Linf",
    built_by: options.BuiltBy = None,
    budget: Annotated[str, Option(help="quick, standard or thorough.")] = "quick",
    surrogates: Annotated[str, Option(help="Other models with commas, each like MODEL: try their images.")] = "",
    name: Annotated[str | None, Option(help="What the audit calls the model.")] = None,
    limit: Annotated[int | None, Option(help="Only the first so many test images; the budget's by default.")] = None,
    size: options.Size = None,
    classes: options.Classes = None,
    checks: Annotated[str, Option(help="More checks, your own, with commas: file.py:NAME.")] = "",
    all_: Annotated[bool, Option("--all", help="Print every check, not only those that failed or warned.")] = False,
    after: Annotated[Path | None, Option(help="Folder of an evaluation whose suite counts, shards merged.")] = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json_: options.Json = False,
    csv: options.Csv = None,
    quiet: options.Quiet = False,
) -> "Audit | None":
    """Look for reasons why a model's robustness is not real. Exit code 1 where a check fails."""
    from planish.audit.auditor import checks as registered
    from planish.runs.audit import audit_into, check_audit

    where, own = terminal.Where(out, resume, overwrite, quiet, batch_size), terminal.names_in(checks)
    given: dict[str, Any] = {"data": data, "norm": norm, "radius": radius, "limit": limit, "seed": seed}
    given |= {"size": size, "classes": classes, "attacks": (), "surrogates": terminal.names_in(surrogates)}
    on, task = _asked("audit", device, given, lambda task: check_audit(task, budget, own))
    judged = _model(model, on, built_by, name)
    if dry_run:
        _tell("audit", model, where, json_, lambda plan: plan.audit(judged, task, on, budget, own))
        return None
    also: dict[str, Any] = {"device": on, "built_by": built_by, "checks": own, "after": after, **where.choice}
    folder, found = _work(
        lambda folder, told: audit_into(judged, task, folder, budget, on_chunk=told, **also),
        ("audit", judged.name, where),
        len(registered()) + len(own),
        _last_check,
    )
    assert found is not None
    _show_audit(found, folder, json_, csv, all_)
    return found


def distances(
    model: options.Model,
    data: options.Data,
    norm: options.Norm = "Linf",
    built_by: options.BuiltBy = None,
    attacks: options.DistanceAttacks = "closest",
    name: Annotated[str | None, Option(help="What the record calls the model.")] = None,
    limit: options.Limit = None,
    size: options.Size = None,
    classes: options.Classes = None,
    shard: options.Share = None,
    workers: options.Workers = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json_: options.Json = False,
    csv: options.Csv = None,
    quiet: options.Quiet = False,
) -> None:
    """Measure how far away the nearest adversarial image is. Exit code 1 where an attack had no gradient to follow."""
    from planish.records.distances import load
    from planish.runs.judge import DISTANCES, check_distances, measure

    where = terminal.Where(out, resume, overwrite, quiet, batch_size, shards.shard_of(shard, workers))
    names = terminal.names_in(attacks)
    if not names:
        raise BadInput(NO_ATTACK)
    given: dict[str, Any] = {"data": data, "attacks": names, "limit": limit, "seed": seed, "norm": norm, "radius": 0}
    given |= {"size": size, "classes": classes, "shard": where.shard}
    on, task = _asked("distances", device, given, check_distances)
    judged = _model(model, on, built_by, name)
    if dry_run:
        return _tell("distances", model, where, json_, lambda plan: plan.distances(judged, task, on))
    folder, found = _work(
        lambda folder, told: measure(judged, task, folder, device=on, **where.choice),
        ("distances", judged.name, where),
        len(names),
        _last_distance,
        shards.AskedWorkers(model, task, workers, on, built_by),
    )
    if where.shard:
        return shards.show_shard(folder, json_)
    show_distances(found or load(folder / DISTANCES), folder, judged.name, json_, csv)


def verify(
    model: options.Model,
    images: Annotated[Path, Argument(help="What --keep-images wrote: adversarial.npz, or a folder, of PNGs too.")],
    data: options.Data,
    radius: options.MaybeRadius = None,
    norm: options.Norm = "Linf",
    threat: options.Threats = None,
    built_by: options.BuiltBy = None,
    limit: options.Limit = None,
    size: options.Size = None,
    classes: options.Classes = None,
    eot: options.Draws = 1,
    device: options.Device = "auto",
    json_: options.Json = False,
) -> None:
    """Judge saved adversarial images afresh; trusts nothing but the model, the test set and the images."""
    from planish.core.words import number_of, radius_text
    from planish.runs.judge import check_task
    from planish.runs.judge import verify as run

    given: dict[str, Any] = {"data": data, "attacks": (), "norm": norm, "radius": radius, "threats": threat, "eot": eot}
    given |= {"limit": limit, "size": size, "classes": classes}
    on, task = _asked("verify", device, given, check_task)
    found = run(_model(model, on, built_by), task, images, device=on)
    if json_:
        return terminal.print_json(found.document())
    terminal.print_line(f"clean accuracy {found.clean}")
    ball = " or ".join(f"{one.name} radius {radius_text(one.radius)}" for one in task.threats)
    terminal.print_line(f"accuracy on these images, {ball}: {found.robust}")
    far = f"largest distance {found.distance:.6g}"
    terminal.print_line(f"{far}; {number_of(found.infeasible)} outside the ball count as unbroken")


def _asked(
    command: str, device: str, given: dict[str, Any], check: "Callable[[EvaluationConfig], None]"
) -> "tuple[str, EvaluationConfig]":
    """Return the device, and what a model is to be judged on: everything tried that is known without a model."""
    from planish.registry import made
    from planish.runs.given import EIGHT_BIT
    from planish.runs.judge import EvaluationConfig

    on = terminal.chosen_device(device)
    levels = EIGHT_BIT if given.pop("eight_bit", False) else None
    first, *others = threats.given(given.pop("norm"), given.pop("radius"), given.pop("threats", None), levels)
    task: EvaluationConfig = made(EvaluationConfig, {**given, "threat": first, "also": tuple(others)}, command)
    check(task)
    return on, task


def _model(model: str, device: str, built_by: str | None, name: str | None = None) -> "LoadedModel":
    """Return the model that a command is given; who built a run's is remembered. Raises BadInput."""
    from planish.runs.judge import load_model

    judged = load_model(model, device, built_by or trust.remembered(model))
    if built_by is not None:
        trust.remember(model, built_by)
    return replace(judged, name=name or judged.name)


def _tell(
    kind: str, model: str, where: terminal.Where, json_: bool, rehearsed: Callable[[ModuleType], dict[str, Any]]
) -> None:
    """Print what would be done. rehearsed: that, by `planish.runs.rehearse`."""
    from planish.runs import rehearse
    from planish.runs.config import tables_text

    tree = rehearsed(rehearse)
    out = where.planned(kind, where.own(kind, tree["name"]))
    whole = {"model": model, "out": str(out), "batch_size": where.batch_size, **tree}
    terminal.print_plan(tables_text(whole), json_)


def _work(
    begin: "Callable[[Path, OnChunk], Iterator[Record]]",
    place: tuple[str, str, terminal.Where],
    total: int,
    words: Callable[[Record], tuple[int, str]],
    asked: shards.AskedWorkers | None = None,
) -> tuple[Path, Record | None]:
    """Do the work of a kind on a model in its folder, a bar showing how far it is; return the folder and the last step.

    words: how many parts are done after a step, and a note. asked: workers that do it instead, if any are asked for.
    """
    if asked is not None and asked.workers is not None:
        return shards.by_workers(asked, place, total, words)
    from planish.core.footprint import at_a_time
    from planish.runs.places import at_work, begun

    kind, name, where = place
    free = where.own(kind, name)
    last: Record | None = None
    with at_a_time(where.batch_size), terminal.progress_bars(where.quiet) as bars:
        bar = bars.add_task(name, total=total, note="clean")
        to_resume = begun(free, kind) if where.resume else None
        told = terminal.showing(bars, bar)
        with at_work(lambda folder: begin(folder, told), where.out, free, to_resume) as (folder, steps):
            for last in steps:
                done, note = words(last)
                bars.update(bar, completed=done, note=note)
    return folder, last


def _last_attack(found: "Evaluation") -> tuple[int, str]:
    return max(1, len(found.asked)), terminal.record_words(found)


def _last_check(found: "Audit") -> tuple[int, str]:
    last = found.findings[-1]
    return len(found.findings), f"{last.check}: {last.verdict}"


def _last_distance(found: "Distances") -> tuple[int, str]:
    done = found.names[-1]
    return len(found.asked), f"{done}: mean {found.mean(done):.4g}"


def _show_audit(found: "Audit", folder: Path, json_: bool, csv: Path | None, whole: bool) -> None:
    """Print an audit, or its audit.json."""
    from planish.records.audit import to_json
    from planish.report.audited import finding_rows

    tables.write_csv([finding_rows(found.findings)], csv)
    if json_:
        terminal.print_json(to_json(found))
    else:
        if whole:
            terminal.print_findings(found)
        terminal.print_audit(found, folder, whole)
    printing.written(folder / "audit.html", json_)
