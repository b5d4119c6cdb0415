"""`planish watch`: how a run in another process goes, as curves in the terminal."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from planish.cli import options, terminal
from planish.core.errors import BadInput, at_least

WIDTH, HEIGHT = 60, 11  # letters of the curves
CURVES = {
    "train_accuracy": ("t", "training accuracy, under the method's attack"),
    "validation_accuracy": ("c", "clean accuracy on held-out images"),
    "validation_robust_accuracy": ("r", "robust accuracy on held-out images, PGD-10"),
}
"""What is drawn, by its key in metrics.jsonl: its letter and what it is. Where two meet, the later one is seen."""


def watch(
    folder: Annotated[Path, Argument(help="Folder of a run, finished or at work.")],
    every: Annotated[float, Option(help="Seconds between two looks.")] = 2.0,
    json_: options.Json = False,
) -> None:
    """Show how a run goes, epoch by epoch; Ctrl-C leaves, and the run goes on."""
    from planish.runs.config import parsed, written
    from planish.runs.run import CONFIG

    at_least(0.1, **{"--every": every})
    if not (folder / CONFIG).exists():
        raise BadInput(f"no run at {folder}: give a run folder, such as planish train writes")
    epochs = parsed(written(folder / CONFIG)).settings.epochs
    history = _history(folder)
    if json_:
        return terminal.print_json({"run": str(folder), "epochs": epochs, "history": history})
    if not sys.stdout.isatty():
        return terminal.print_line("\n".join(view(folder.name, history, epochs)))
    _live(folder, epochs, every)


def _live(folder: Path, epochs: int, every: float) -> None:
    """Draw again and again until the last epoch is done or the user leaves."""
    from rich.live import Live
    from rich.text import Text

    with Live(console=terminal.console(), auto_refresh=False) as screen:
        try:
            while True:
                history = _history(folder)
                screen.update(Text("\n".join(view(folder.name, history, epochs))), refresh=True)
                if len(history) >= epochs:
                    return
                time.sleep(every)
        except KeyboardInterrupt:
            return


def _history(folder: Path) -> list[dict[str, Any]]:
    from planish.runs.run import METRICS, read_history

    return read_history(folder / METRICS, {})


def view(name: str, history: Sequence[Mapping[str, Any]], epochs: int) -> list[str]:
    """Return the lines that show a run: how far it is, its curves, their legend, and the guard's alarms."""
    lines = [terminal.visible(f"{name}: epoch {len(history)} of {epochs}{_left(history, epochs)}")]
    if not history:
        return [*lines, "no epoch is finished yet"]
    last = history[-1]
    drawn = [key for key in CURVES if key in last]
    lines += curves({CURVES[key][0]: [float(one.get(key, 0.0)) for one in history] for key in drawn}, epochs)
    lines += [f"  {CURVES[key][0]} {100 * last[key]:5.1f} %  {CURVES[key][1]}" for key in drawn]
    lines.append(f"  loss {last['loss']:.3f}, learning rate {last.get('learning_rate', 0.0):.3g}")
    return lines + [terminal.alarm_words(alarm) for one in history for alarm in one.get("alarms", [])]


def _left(history: Sequence[Mapping[str, Any]], epochs: int) -> str:
    """Say how long the rest takes, if epochs go on as they went."""
    from planish.report.tables import seconds_text

    if not history or len(history) >= epochs:
        return ""
    mean = sum(one.get("seconds", 0.0) for one in history) / len(history)
    return f", about {seconds_text(mean * (epochs - len(history)))} to go"


def curves(series: Mapping[str, Sequence[float]], epochs: int) -> list[str]:
    """Return the lines of a diagram: shares in [0, 1], a letter for each series, the epochs from left to right."""
    rows = [[" "] * WIDTH for _ in range(HEIGHT)]
    for letter, values in series.items():
        for place, value in enumerate(values):
            column = round(place * (WIDTH - 1) / max(epochs - 1, 1))
            rows[round((1 - value) * (HEIGHT - 1))][column] = letter
    marks = {0: "100 %", HEIGHT // 2: " 50 %", HEIGHT - 1: "  0 %"}
    body = [f"{marks.get(place, ''):>5} |{''.join(row).rstrip()}" for place, row in enumerate(rows)]
    return [*body, f"{'':>5} +{'-' * WIDTH}", f"{'':>7}1{f'epoch {epochs}':>{WIDTH - 1}}"]
