"""`planish evaluate`, `audit`, `distances` and `verify`: a model on a test set."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from planish.cli import terminal
from planish.cli.pages import write_page
from planish.core.errors import BadInput
from planish.storage.files import alone

if TYPE_CHECKING:
    from planish.runs.judge import EvaluationConfig, LoadedModel


def evaluate(
    model: terminal.Model,
    data: terminal.Data,
    radius: terminal.Radius,
    norm: terminal.Norm = "Linf",
    built_by: terminal.BuiltBy = None,
    attacks: Annotated[str, Option(help="Names with commas; see: planish list attacks.")] = "planish-suite",
    surrogates: Annotated[str, Option(help="For transfer: other models with commas, each like MODEL.")] = "",
    name: Annotated[str | None, Option(help="What a report calls the model; a run's method by default.")] = None,
    limit: terminal.Limit = None,
    size: terminal.Size = None,
    classes: terminal.Classes = None,
    precision: Annotated[
        str, Option(help="Of the attacks' search: float32 or bf16. Verdicts are float32.")
    ] = "float32",
    eot: terminal.Draws = 1,
    keep_images: Annotated[
        bool, Option("--keep-images", help="Save the adversarial images too, for planish verify.")
    ] = False,
    out: terminal.Out = Path("runs/evaluation"),
    seed: terminal.Seed = 0,
    device: terminal.Device = "auto",
    resume: terminal.Resume = False,
    json_: terminal.Json = False,
    quiet: terminal.Quiet = False,
) -> None:
    """Attack a model on a test set, and write a report."""
    from planish.runs.judge import evaluate_into

    device, names = terminal.chosen_device(device), terminal.names_in(attacks)
    options: dict[str, Any] = {"data": data, "attacks": names, "limit": limit, "seed": seed, "size": size}
    options["classes"] = classes
    options |= {
        "precision": precision,
        "eot": eot,
        "keep_images": keep_images,
        "surrogates": terminal.names_in(surrogates),
    }
    judged, task = _loaded("evaluate", model, device, built_by, name, norm=norm, radius=radius, **options)
    with alone(out), terminal.progress_bars(quiet) as bars:
        bar = bars.add_task(judged.name, total=1 + len(names), note="clean")
        also: dict[str, Any] = {"device": device, "on_chunk": terminal.showing(bars, bar), "built_by": built_by}
        for record in evaluate_into(judged, task, out, resume=resume, **also):
            bars.update(bar, completed=max(1, len(record.asked)), note=terminal.record_words(record))
    write_page([out], out, f"Robustness of {judged.name}", json_)


def audit(
    model: terminal.Model,
    data: terminal.Data,
    radius: terminal.Radius,
    norm: terminal.Norm = "Linf",
    built_by: terminal.BuiltBy = None,
    budget: Annotated[str, Option(help="quick, standard or thorough.")] = "quick",
    surrogates: Annotated[str, Option(help="Other models with commas, each like MODEL: try their images.")] = "",
    name: Annotated[str | None, Option(help="What the audit calls the model.")] = None,
    limit: Annotated[int | None, Option(help="Only the first so many test images; the budget's by default.")] = None,
    size: terminal.Size = None,
    classes: terminal.Classes = None,
    checks: Annotated[str, Option(help="More checks, your own, with commas: file.py:NAME.")] = "",
    out: terminal.Out = Path("runs/audit"),
    seed: terminal.Seed = 0,
    device: terminal.Device = "auto",
    resume: terminal.Resume = False,
    json_: terminal.Json = False,
    quiet: terminal.Quiet = False,
) -> None:
    """Look for reasons why a model's robustness is not real. Exit code 1 where a check fails."""
    from planish.audit.auditor import checks as registered
    from planish.records.audit import to_json
    from planish.runs.audit import audit_into

    device, own = terminal.chosen_device(device), terminal.names_in(checks)
    options: dict[str, Any] = {"data": data, "attacks": (), "limit": limit, "seed": seed, "size": size}
    options["classes"] = classes
    options["surrogates"] = terminal.names_in(surrogates)
    judged, task = _loaded("audit", model, device, built_by, name, norm=norm, radius=radius, **options)
    with alone(out), terminal.progress_bars(quiet) as bars:
        bar = bars.add_task(judged.name, total=len(registered()) + len(own), note="clean")
        also: dict[str, Any] = {"device": device, "on_chunk": terminal.showing(bars, bar), "built_by": built_by}
        for found in audit_into(judged, task, out, budget, checks=own, resume=resume, **also):
            last = found.findings[-1]
            bars.update(bar, completed=len(found.findings), note=f"{last.check}: {last.verdict}")
    terminal.print_json(to_json(found)) if json_ else terminal.print_audit(found, out)
    if found.verdict == "fail":
        raise typer.Exit(1)


def distances(
    model: terminal.Model,
    data: terminal.Data,
    norm: terminal.Norm = "Linf",
    built_by: terminal.BuiltBy = None,
    attacks: Annotated[str, Option(help="Distance attacks with commas; see: planish list attacks.")] = "closest",
    limit: terminal.Limit = None,
    size: terminal.Size = None,
    classes: terminal.Classes = None,
    out: terminal.Out = Path("runs/distances"),
    seed: terminal.Seed = 0,
    device: terminal.Device = "auto",
    resume: terminal.Resume = False,
    json_: terminal.Json = False,
    quiet: terminal.Quiet = False,
) -> None:
    """Measure how far away the nearest adversarial image is. Exit code 1 where an attack had no gradient to follow."""
    from planish.records.distances import Distances, load
    from planish.report.distances import distance_rows, to_json, write_distances
    from planish.runs.judge import DISTANCES, measure

    device, names = terminal.chosen_device(device), terminal.names_in(attacks)
    if not names:
        raise BadInput("no attack is named; see: planish list attacks")
    options: dict[str, Any] = {"data": data, "attacks": names, "limit": limit, "seed": seed, "size": size}
    options["classes"] = classes
    judged, task = _loaded("distances", model, device, built_by, norm=norm, radius=0, **options)
    with alone(out), terminal.progress_bars(quiet) as bars:
        bar = bars.add_task(judged.name, total=len(names), note=names[0])
        found: Distances | None = None
        for found in measure(judged, task, out, device=device, resume=resume):
            done = found.names[-1]
            bars.update(bar, completed=len(found.asked), note=f"{done}: mean {found.mean(done):.4g}")
    record = found or load(out / DISTANCES)
    figure = write_distances(record, out)
    if json_:
        terminal.print_json(to_json(record))
    else:
        terminal.print_rows(distance_rows(record))
        terminal.print_remarks(judged.name, record.remarks())
        terminal.console().print(f"figure: {figure}")
    if any(column.meta.get("no_gradient") for column in record.columns):
        raise typer.Exit(1)


def verify(
    model: terminal.Model,
    images: Annotated[Path, Argument(help="adversarial.npz, as planish evaluate --keep-images writes it.")],
    data: Annotated[str, Option(help="digits, cifar10:PATH, or a path: the test set that was attacked.")],
    radius: terminal.Radius,
    norm: terminal.Norm = "Linf",
    built_by: terminal.BuiltBy = None,
    size: terminal.Size = None,
    classes: terminal.Classes = None,
    eot: terminal.Draws = 1,
    device: terminal.Device = "auto",
    json_: terminal.Json = False,
) -> None:
    """Judge saved adversarial images afresh; trusts nothing but the model, the test set and the images."""
    from planish.report.tables import radius_text
    from planish.runs.judge import verify as run

    device = terminal.chosen_device(device)
    options: dict[str, Any] = {"data": data, "attacks": (), "norm": norm, "radius": radius, "size": size}
    options["classes"] = classes
    options["eot"] = eot
    judged, task = _loaded("verify", model, device, built_by, **options)
    found = run(judged, task, images, device=device)
    if json_:
        return terminal.print_json(found.document())
    screen = terminal.console()
    screen.print(f"clean accuracy {found.clean}")
    ball = f"{task.threat.name} radius {radius_text(task.threat.radius)}"
    screen.print(f"accuracy on these images, {ball}: {found.robust}")
    screen.print(f"largest distance {found.distance:.6g}; {found.infeasible} images outside the ball count as unbroken")


def _loaded(
    command: str, model: str, device: str, built_by: str | None, name: str | None = None, **options: Any
) -> "tuple[LoadedModel, EvaluationConfig]":
    """Return the model that a command is given, and what it is judged on: the options, checked. Raises BadInput."""
    from planish.core.threat import parse_threat
    from planish.registry import made
    from planish.runs.judge import EvaluationConfig, load_model

    threat = parse_threat(options.pop("norm"), options.pop("radius"))
    task = made(EvaluationConfig, {**options, "threat": threat}, command)
    judged = load_model(model, device, built_by)
    return replace(judged, name=name or judged.name), task
