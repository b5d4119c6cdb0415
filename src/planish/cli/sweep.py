"""`planish sweep`: values searched by any number of workers that run this same command."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from planish.cli import options, tables, terminal
from planish.core.errors import BadInput

if TYPE_CHECKING:
    from planish.runs.space import Dimension
    from planish.runs.sweep import TrialStep


def sweep(
    recipe: Annotated[str, Argument(help="TOML file of a training, or a paper's table whose rows are tried.")],
    space: Annotated[
        list[str] | None,
        Option(help="KEY=log(0.1,10), uniform(0,1), int(1,3), choice(relu,gelu) or grid(0.1,0.3). Repeatable."),
    ] = None,
    objective: Annotated[str, Option(help="robust-accuracy, or both: clean as well, and nothing pruned.")] = (
        "robust-accuracy"
    ),
    trials: Annotated[int | None, Option(help="How many in all: each point of a grid, else 20, by default.")] = None,
    attacks: options.Attacks = "planish-suite",
    data: options.TrainingData = None,
    set_: options.Set = None,
    scale: Annotated[str, Option(help="Of a paper's table: cpu, small, gpu or full.")] = "cpu",
    out: Annotated[Path | None, Option("--out", "-o", help="Folder that all workers share.")] = None,
    storage: Annotated[str | None, Option(help="Journal file or database URL; a journal in --out by default.")] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    json_: options.Json = False,
    csv: options.Csv = None,
    quiet: options.Quiet = False,
) -> None:
    """Search training options for robust accuracy on held-out images; run it again, or many times at once."""
    from planish.runs.places import HOME
    from planish.runs.space import Sweep, dimension

    recipes = _recipes(recipe, scale, data, set_ or [])
    wanted = [dimension(text) for text in space or []]
    own = Sweep(recipes, (*_rows(recipes, wanted), *wanted), objective, terminal.names_in(attacks), trials, seed)  # type: ignore[arg-type]
    folder = out or HOME / "sweep" / Path(recipe).stem
    from planish.runs.sweep import sweep_into

    try:
        _watched(sweep_into(own, folder, storage, terminal.chosen_device(device)), own.most, quiet)
    except KeyboardInterrupt:
        raise Exit(terminal.failed(terminal.SAME_GOES_ON, 130)) from None
    _shown(folder, json_, csv)


def _recipes(recipe: str, scale: str, data: str | None, overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the configuration tree of a file under "", or those of a paper's table by row. Raises BadInput."""
    from planish.runs.config import experiment_of, to_toml
    from planish.storage.reading import toml_of

    if Path(recipe).exists() or recipe.endswith(".toml"):
        trees = {"": toml_of(to_toml(experiment_of(Path(recipe), {}, [])))}
    else:
        from planish.reproduce import Job, table

        own = table(recipe)
        job = Job.of(own, scale, Path(), train=data)
        trees = {row: toml_of(to_toml(job.experiment(row))) for row in own.trainable}
    return {name: _overridden(tree, data, overrides) for name, tree in trees.items()}


def _overridden(tree: Mapping[str, Any], data: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    from planish.runs.config import override

    if data is not None:
        tree = {**tree, "data": {**tree["data"], "source": data}}
    for assignment in overrides:
        tree = override(tree, assignment)
    return dict(tree)


def _rows(recipes: Mapping[str, Any], wanted: "Sequence[Dimension]") -> "Iterator[Dimension]":
    """Yield the dimension of a paper's rows, unless it is asked for already: a grid only beside grids.

    Raises BadInput for unknown rows.
    """
    from planish.core.errors import one_of
    from planish.runs.space import ROW, Dimension

    asked = [row for own in wanted if own.key == ROW for row in own.values]
    if "" in recipes and asked:
        raise BadInput(f"--space {ROW}=... chooses rows of a paper's table, and a file is one recipe")
    for row in asked:
        one_of(recipes, **{f"--space {ROW}": str(row)})
    if "" not in recipes and not asked:
        yield Dimension(ROW, "grid" if all(own.kind == "grid" for own in wanted) else "choice", tuple(recipes))


def _watched(steps: "Iterator[TrialStep]", most: int, quiet: bool) -> None:
    """Work, and tell of each trial on a bar or line by line."""
    with terminal.progress_bars(quiet) as bars:
        bar = bars.add_task("trials", total=most, note="waiting for its turn")
        for number, event in steps:
            words = event if isinstance(event, str) else terminal.event_words(event)
            told = f"trial {number}: {words}"
            if words.startswith("failed"):
                bars.console.print(told, soft_wrap=True)
            else:
                terminal.log(told, bars)
            bars.update(bar, completed=number, note=told)


def _shown(folder: Path, json_: bool, csv: Path | None) -> None:
    """Print what the sweep has found, and the commands that train and judge the winner."""
    from planish.report.front import DOCUMENT, PAGE, document_rows
    from planish.storage.reading import read_json

    found = read_json(folder / DOCUMENT, "run the sweep again")
    rows = document_rows(found)
    if json_:
        tables.write_csv([rows], csv)
        return terminal.print_json(found)
    tables.show([rows], csv)
    terminal.print_line(found["headline"])
    terminal.print_line(f"note: {found['caution']}", "yellow")
    terminal.print_line(f"report: {folder / PAGE}")
    for command in found["commands"]:
        terminal.print_line(f"next: {command}")
