"""What the commands share: where they write, lines and tables on stdout, progress bars on stderr, how they fail."""

import errno
import io
import json
import logging
import os
import re
import shlex
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.core.errors import BadInput, at_least
from planish.core.words import measure, number_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from planish.evaluation.at_work import OnChunk, Update
    from planish.records.audit import Audit, Finding
    from planish.records.evaluation import Evaluation
    from planish.records.shards import ImageShard
    from planish.report import Entry
    from planish.report.tables import Table as Rows
    from planish.training.loop import EpochRecord


GOES_ON = "interrupted; what was finished is saved, --resume goes on"
SAME_GOES_ON = "interrupted; what was finished is saved, and the same command goes on with it"
"""What Ctrl-C is answered with by commands that have --resume, and by those that always go on."""


def chosen_device(name: str) -> str:
    """Return the device to compute on. Raises BadInput if it cannot be used."""
    import torch

    from planish.core.arguments import device_named

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device_named(name)
    return name


def origin() -> dict[str, Any]:
    """Return the provenance of a page, its command among its commands."""
    from planish.records.origin import provenance

    found = provenance("cpu")
    return {**found, "commands": [found["command"]]}


def names_in(text: str) -> tuple[str, ...]:
    """Return the names that commas part."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


@dataclass(frozen=True)
class Where:
    """Where a command writes, what becomes of what is there, whether it shows bars, and images at a time.

    shard: which one is asked for, if one is. Raises BadInput where options contradict each other.
    """

    out: Path | None
    resume: bool
    overwrite: bool
    quiet: bool = False
    batch_size: int | None = None
    shard: "ImageShard | None" = None

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise BadInput("--resume goes on with what is there and --overwrite begins anew: give one of them")
        if self.overwrite and self.out is None:
            raise BadInput("--overwrite needs --out FOLDER: without it a command takes a folder of its own")
        at_least(1, **{"--batch-size": self.batch_size})

    def own(self, kind: str, name: str) -> Path:
        """Return the folder of a work of this kind on a model of this name, before it is numbered."""
        from planish.runs.places import HOME, folder_name

        return HOME / kind / f"{folder_name(name)}{self.shard.suffix if self.shard else ''}"

    def planned(self, kind: str, free: Path) -> Path:
        """Return where work of this kind would go: the first that is `free`, unless it is named.

        Raises BadInput, as the work would, for a named folder that is taken or cannot be written.
        """
        from planish.runs.audit import refuse_audited
        from planish.runs.places import check_out, first_free, refuse_taken

        if self.out is None:
            return first_free(free)
        if not (self.resume or self.overwrite):
            refuse_audited(self.out) if kind == "audit" else refuse_taken(self.out, kind, resumes=True)
        check_out(self.out, kind)
        return self.out

    @property
    def choice(self) -> dict[str, bool]:
        """What becomes of what is there, as the functions of `runs` take it."""
        return {"resume": self.resume, "overwrite": self.overwrite}


def log(text: str, bars: "Progress") -> None:
    """Print how far a work is as a line on stderr, where no bar shows it."""
    from planish.cli.progress import Lines

    if isinstance(bars, Lines):
        bars.say(text)


def print_line(text: str, style: str = "") -> None:
    """Print a line that is not to be broken, such as one to paste."""
    console().print(text, style=style or None, soft_wrap=True)


def next_command(*words: object, **given: object) -> str:
    """Return a command to type next, quoted for a shell; options that are None, and the norm Linf, are left out."""
    told = {name: value for name, value in given.items() if value is not None and (name, value) != ("norm", "Linf")}
    options = [part for name, value in told.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join(["planish", *map(str, words), *options])


def print_next(*words: object, **given: object) -> None:
    """Print a command to type next."""
    print_line(f"next: {next_command(*words, **given)}")


def print_plan(text: str, json_: bool) -> None:
    """Print a configuration, which is TOML."""
    from planish.storage.reading import toml_of

    print_json(toml_of(text)) if json_ else print(visible(text), end="")


def print_run(folder: Path) -> None:
    """Print where a run lies, which files its images came from, and what a reader must know of them."""
    from planish.runs.run import PROVENANCE
    from planish.storage.reading import read_json

    origin = read_json(folder / PROVENANCE, "train again")
    print_line(f"run folder: {folder}")
    if "data_files" in origin:
        print_line(f"data: {origin['data_name']}, {origin['data_files']}")
    for note in origin.get("data_notes", []):
        print_line(f"note: {note}", "yellow")


def print_summary(found: "Sequence[Entry]", page: Path) -> None:
    """Print a report's warnings and where the page is."""
    print_sources([entry.evaluation.meta for entry in found])
    for entry in found:
        print_remarks(entry.name, entry.evaluation.remarks())
    print_line(f"report: {page}")


def print_sources(metas: "Sequence[Mapping[str, Any]]") -> None:
    """Print which files the images of records came from, and by which numbers models of libraries normalise them."""
    data, models = ([meta.get(kind, {}) for meta in metas] for kind in ("data", "model"))
    lines = [f"data: {one.get('name')}, {one['files']}" for one in data if "files" in one]
    lines += [f"normalization of {one['name']}: {one['normalization']}" for one in models if "normalization" in one]
    for line in dict.fromkeys(lines):
        print_line(line)


def print_remarks(name: str, remarks: "Sequence[str]") -> None:
    """Print what a reader must know of a model's record."""
    for remark in remarks:
        console().print(f"note: {name}: {remark}", style="yellow")


VERDICT_STYLES = {"pass": "green", "open": "dim", "warn": "yellow", "fail": "red"}
TOLD = ("fail", "warn")
"""Verdicts whose findings are printed one by one."""


def print_audit(audit: "Audit", folder: Path, whole: bool) -> None:
    """Print an audit's verdict and headline, what failed or warned with why and what to do, and where the page is.

    whole: every check was printed before, so that none of them is told of again.
    """
    from planish.records.audit import SEVERITY

    counts = [f"{sum(f.verdict == kind for f in audit.findings)} {kind}" for kind in reversed(SEVERITY)]
    screen = console()
    screen.print(f"{audit.name}: {audit.verdict} ({', '.join(counts)})", style=VERDICT_STYLES[audit.verdict])
    screen.print(audit.headline())
    for finding in () if whole else (one for kind in TOLD for one in audit.findings if one.verdict == kind):
        number, limits = finding_words(finding)
        found = " ".join(filter(None, [number, f"({limits})" if limits else ""]))
        screen.print(f"\n{finding.verdict}: {finding.check} {found}".rstrip(), style=VERDICT_STYLES[finding.verdict])
        screen.print(f"  why: {finding.meaning}")
        screen.print(f"  what to do: {finding.advice or 'nothing'}")
    screen.print()
    print_sources([audit.meta])
    for note in audit.remarks():
        screen.print(f"note: {note}", style="yellow")
    if not whole:
        print_line("--all prints every check")
    print_line(f"report: {folder / 'audit.html'}")


def print_findings(audit: "Audit") -> None:
    """Print every finding of an audit as a table, the worst first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from planish.records.audit import SEVERITY

    table = Table("verdict", "check", "found", "thresholds", "meaning", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for finding in sorted(audit.findings, key=lambda finding: -SEVERITY.index(finding.verdict)):
        verdict = Text(finding.verdict, VERDICT_STYLES[finding.verdict])
        table.add_row(verdict, finding.check, *finding_words(finding), f"{finding.meaning} {finding.advice}".strip())
    console().print(table)


def finding_words(finding: "Finding") -> tuple[str, str]:
    """Word the number that was judged, and the thresholds."""
    value = finding.statistic
    number = "" if value is None else measure(value, f"{value:.3g}", finding.unit)
    limits = [f"{kind} {at:g}" for kind, at in (("warn", finding.warn_at), ("fail", finding.fail_at)) if at is not None]
    return number, ", ".join(limits)


def print_rows(rows: "Rows") -> None:
    """Print a table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    headers = (re.sub(r"^(After|Training) ", r"\1\n", header) for header in rows.headers)
    table = Table(
        *headers, box=SIMPLE_HEAD, leading=1, padding=(0, 1, 0, 0), caption=rows.caption, caption_justify="left"
    )
    for row in rows.rows:
        table.add_row(*(re.sub(r" (?=[\[(])", "\n", cell) for cell in row))
    console().print(table)


def print_lines(lines: "Mapping[str, str]", costs: "Mapping[str, float]") -> None:
    """Print names and what they are; those of training methods by what a step costs."""
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, line in sorted(lines.items(), key=lambda pair: costs.get(pair[0], 0.0)):
        table.add_row(name, *([f"{costs[name]:.2f}x"] if name in costs else []), line)
    if costs:
        console().print("A step of each costs so many steps of standard training:")
    console().print(table)


def update_words(update: "Update") -> str:
    """Word how far an evaluation is in the middle of an attack."""
    from planish.records.statistics import Estimate

    robust = Estimate.from_counts(update.images - update.wrong - update.broken, update.images)
    share = f"{100 * robust.value:.1f} % [{100 * robust.low:.1f}, {100 * robust.high:.1f}] robust"
    left = f"at most {number_of(update.left, 'search', 'searches')} to go"
    return f"{update.attack}: {update.broken} broken, {share}, {left}, {update.passes:,} passes"


def showing(bars: "Progress", bar: "TaskID", of: str = "") -> "OnChunk":
    """Return what shows on a bar how far an attack has come. of: what is attacked, put before it."""
    return lambda update: bars.update(bar, note=of + update_words(update))


def record_words(record: "Evaluation") -> str:
    """Word how far an evaluation is between attacks."""
    accuracy = record.robust_accuracy()
    return f"{record.names[-1] if record.columns else 'clean'}: {100 * accuracy.value:.1f} % robust"


def event_words(event: "EpochRecord | Evaluation") -> str:
    """Word what training or an evaluation has just done."""
    from planish.records.evaluation import Evaluation

    return record_words(event) if isinstance(event, Evaluation) else epoch_words(event.metrics)


def epoch_words(metrics: "Mapping[str, float]") -> str:
    """Word how an epoch went."""
    return f"loss {metrics['loss']:.3f}, training accuracy {100 * metrics['train_accuracy']:.1f} %"


def alarm_words(alarm: "Mapping[str, float]") -> str:
    """Word an alarm of the guard."""
    went_on = "the method has nothing to harden: went on"
    then = "went back and strengthened the method" if alarm["went_back"] else went_on
    seen = f"the loss of {100 * alarm['falling']:.0f} % falls under the attack, cosine {alarm['gradient_cosine']:.2f}"
    probed = f", {100 * alarm['robust']:.0f} % withstand PGD" if "robust" in alarm else ""
    return (
        f"alarm at step {alarm['step']:.0f}, epoch {alarm['epoch']:.0f}: {seen};"
        f" {100 * alarm['one_step']:.0f} % withstand one gradient step{probed}; {then}"
    )


def visible(text: str) -> str:
    """Return a text from outside as a terminal may print it: control characters are written as escapes."""
    return "".join(
        letter.encode("unicode_escape").decode()
        if letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cf", "Cs")
        else letter
        for letter in text
    )


def console(stderr: bool = False) -> "Console":
    """Return a screen, 160 columns wide where it is not a terminal, that takes no text for markup."""
    from rich.console import Console
    from rich.text import Text

    class Screen(Console):
        """Prints texts as they are, control characters as escapes."""

        def render_str(self, text: str, **options: Any) -> Text:
            """Return the text with its style, for a line or a cell of a table."""
            return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})

        def on_broken_pipe(self) -> None:
            """Let the command end as others do whose output nobody reads; rich raises SystemExit."""
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    stream = sys.stderr if stderr else sys.stdout
    return Screen(stderr=stderr, width=None if stream.isatty() else 160, highlight=False, soft_wrap=False)


def failed(message: str, code: int) -> int:
    """Print what went wrong as one line on stderr, and return the exit code."""
    print(f"planish: {visible(' '.join(message.split()))}", file=sys.stderr)
    return code


class Notes(logging.Handler):
    """Prints what the library tells of, such as a damaged file, as one line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line."""
        print(visible(record.getMessage()), file=sys.stderr)


NOTES = Notes()


def forgiving() -> None:
    """Let both streams write what their encoding has not, such as snowmen in ASCII, as escapes; show the notes.

    What is written to a stream that the shell has closed is lost.
    """
    logging.getLogger("planish").addHandler(NOTES)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(document: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(document, indent=2))


@contextmanager
def progress_bars(quiet: bool) -> "Iterator[Progress]":
    """Progress bars on stderr; where it is no terminal a line a minute, and nothing if it is to be quiet."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class PlainColumn(TextColumn):
        """A field of a task, as it is."""

        def render(self, task: Any) -> Text:
            """Return the text of one bar."""
            return Text(visible(self.text_format.format(task=task)))

    note = PlainColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns = [PlainColumn("{task.description:>10}"), BarColumn(16), TimeElapsedColumn(), TimeRemainingColumn(), note]
    if not (quiet or sys.stderr.isatty()):
        from planish.cli.progress import Lines

        yield Lines()
        return
    with Progress(*columns, console=console(stderr=True), disable=quiet) as bars:
        yield bars
