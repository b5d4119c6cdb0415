"""How far work is, shown as it suits: a bar on a terminal or in a notebook, and in a log a line a minute."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module
from time import monotonic
from typing import Any, TypeVar

from rich.progress import Progress, TaskID

from planish.cli import terminal

MINUTE = 60.0
Step = TypeVar("Step")
Show = Callable[[int, str], None]
"""Told of how many steps are done, and of the last one in words."""


class Lines(Progress):
    """Progress in a log: nothing is drawn, and a line says how far a task is, once a minute at most."""

    def __init__(self) -> None:
        super().__init__(console=terminal.console(stderr=True), disable=True)
        self.told = monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Note how far the task is, and say so if a minute has passed without a word."""
        super().update(task_id, **changes)
        if monotonic() - self.told < MINUTE:
            return
        task = next(task for task in self.tasks if task.id == task_id)
        of = "" if task.total is None else f" of {task.total:.0f}"
        self.say(f"{task.description}: {task.completed:.0f}{of}, {task.fields.get('note', '')}".rstrip(", "))

    def say(self, text: str) -> None:
        """Print a line on stderr; the next one comes no sooner than in a minute unless it is asked for."""
        self.told = monotonic()
        print(terminal.visible(text), file=sys.stderr, flush=True)


def progress(steps: Iterable[Step], total: int | None = None) -> Iterator[Step]:
    """Yield the steps of `train_steps`, `evaluate_steps` or `audit_steps`, and show how far they are.

    total: how many there will be, None = unknown. A bar on a terminal and in a notebook; a line a minute on stderr
    where there is neither.
    """
    with _shown(total) as show:
        for done, step in enumerate(steps, 1):
            show(done, words(step))
            yield step


def words(step: object) -> str:
    """Word what a step has done, "" for one of another kind."""
    from planish.evaluation.evaluate import EvaluationStep
    from planish.records.audit import Audit
    from planish.training.loop import EpochRecord

    if isinstance(step, EvaluationStep):
        return terminal.record_words(step.evaluation)
    if isinstance(step, EpochRecord):
        return f"epoch {step.epoch}: {terminal.epoch_words(step.metrics)}"
    if isinstance(step, Audit) and step.findings:
        return f"{step.findings[-1].check}: {step.findings[-1].verdict}"
    return ""


@contextmanager
def _shown(total: int | None) -> Iterator[Show]:
    if (notebook := _notebook()) is not None:
        yield _cell(notebook, total)
        return
    with terminal.progress_bars(False) as bars:
        bar = bars.add_task("planish", total=total, note="")
        yield lambda done, told: bars.update(bar, completed=done, note=told)


def _notebook() -> Any:
    """Return IPython's module of displays inside a notebook, else None."""
    try:
        shell = import_module("IPython").get_ipython()
        return import_module("IPython.display") if hasattr(shell, "kernel") else None
    except ImportError:
        return None


def _cell(notebook: Any, total: int | None) -> Show:
    """Return what shows a bar below a notebook's cell, always the same one."""
    handle = notebook.display(notebook.HTML(_bar(0, total, "")), display_id=True)
    return lambda done, told: handle.update(notebook.HTML(_bar(done, total, told)))


def _bar(done: int, total: int | None, told: str) -> str:
    share = "" if total is None else f' value="{done}" max="{total}"'
    of = "" if total is None else f" of {total}"
    return f"<progress{share}></progress> {done}{of} {escape(told)}"
