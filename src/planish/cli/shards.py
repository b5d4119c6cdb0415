"""What commands that judge have for shards: which one is asked for, workers with a bar each, and what comes next."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from planish.cli import terminal, trust
from planish.core.errors import BadInput

if TYPE_CHECKING:
    from planish.records.shards import ImageShard
    from planish.runs.judge import EvaluationConfig


class AskedWorkers(NamedTuple):
    """What workers are asked for: a model as it was given, on what, how many, on which device.

    earlier: an evaluation that theirs is to be compared with, if there is one.
    """

    model: str
    task: "EvaluationConfig"
    workers: str | None
    device: str
    built_by: str | None
    earlier: Path | None = None


def shard_of(shard: str | None, workers: str | None) -> "ImageShard | None":
    """Return the shard that is asked for, if one is. Raises BadInput."""
    from planish.records.shards import ImageShard

    if shard is not None and workers is not None:
        raise BadInput("--shard is one part and --workers does them all: give one of them")
    return None if shard is None else ImageShard.parsed(shard)


def by_workers(
    asked: AskedWorkers, place: tuple[str, str, terminal.Where], total: int, words: Callable[[Any], tuple[int, str]]
) -> tuple[Path, Any]:
    """Do by workers what a command does in its folder, a bar for each; return the folder and the last record."""
    from planish.evaluation.at_work import Update
    from planish.runs.against import refuse_other_shard
    from planish.runs.places import at_work, begun
    from planish.runs.workers import Judging, devices_of, judge_by_workers

    kind, name, where = place
    assert asked.workers is not None
    devices = devices_of(asked.workers, asked.device)
    built_by = asked.built_by or trust.known(asked.model)
    job = Judging(kind, asked.model, name, asked.task, devices, built_by, where.batch_size)
    free, last = where.own(kind, name), None
    with terminal.progress_bars(where.quiet) as bars:
        numbers = range(1, len(devices) + 1)
        own = {number: bars.add_task(f"{name} {number}/{len(devices)}", total=total, note="") for number in numbers}

        def told(number: int, event: Any) -> None:
            if isinstance(event, Update):
                return bars.update(own[number], note=terminal.update_words(event))
            if asked.earlier is not None:
                refuse_other_shard(event, asked.earlier)
            done, note = words(event)
            bars.update(own[number], completed=done, note=note)

        def begin(folder: Path) -> Any:
            return judge_by_workers(job, folder, told, **where.choice)

        to_resume = begun(free, kind, job.parts) if where.resume else None
        with at_work(begin, where.out, free, to_resume) as (folder, steps):
            for last in steps:
                terminal.log(f"merged: {', '.join(last.asked) or 'clean'}", bars)
    return folder, last


def show_shard(folder: Path, json_: bool) -> None:
    """Print what a shard's folder holds, and how it is joined with the others, or all that as JSON."""
    from planish.runs.merge import record_in

    record = record_in(folder)
    facts = record.meta["shard"]
    found = {"shard": f"{facts['number']}/{facts['of']}", "folder": str(folder), "images": len(record.labels)}
    found |= {"of": facts["images"], "attacks": [*record.asked], "left": facts["left"]}
    if json_:
        return terminal.print_json(found)
    terminal.print_line(f"shard {found['shard']}: {found['images']:,} of {found['of']:,} images, in {folder}")
    if facts["left"]:
        terminal.print_line(f"left: {', '.join(facts['left'])}, which all shards together decide")
    terminal.print_line("next, when all shards are done: planish merge FOLDERS")
