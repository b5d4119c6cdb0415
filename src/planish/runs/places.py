"""Where a command writes: a folder for each model and number, and which files of a folder planish wrote."""

import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from planish.core.errors import BadInput, Unlike
from planish.storage.files import LOCK, alone, refuse_unwritable, remove, remove_folder
from planish.storage.reading import HEAD, content_of, is_sealed

Step = TypeVar("Step")
LOG = logging.getLogger("planish")
HOME = Path("runs")
"""Where commands write that are not told where."""
PAGE = ("report.html", "results.json", "card.md")
_TRAINED = ("config.toml", "provenance.json", "metrics.jsonl", "resume.pt", "resume.previous.pt")
_WEIGHTS = tuple(f"model{part}.safetensors" for part in ("", ".previous", "-best", "-best.previous"))
WRITTEN = {
    "evaluation": (
        "evaluation.npz",
        "gallery.npz",
        "adversarial.npz",
        "adversarial/*.npz",
        "png/*.png",
        "progress.npz",
        "progress-done.npz",
        "corruptions.npz",
        *PAGE,
    ),
    "audit": (
        *("audit.npz", "audit.json", "audit.html", "audit.md", "geometry.npz", "card.md"),
        *("audit-suite.npz", "audit-images.npz", "audit-check-images.npz"),
    ),
    "distances": ("distances.npz", "distances.json"),
    "report": PAGE,
}
"""The files of each kind of work but figures, which are written anew, "FOLDER/*.npz" those in a folder of its own.

The first one says that there is such work.
"""
OF_A_MODEL = tuple(WRITTEN)
"""Kinds of work that judge a model, and say nothing of another."""
WRITTEN |= {"train": (*_TRAINED, *_WEIGHTS), "sweep": ("definition.json", "sweep.json", "report.html")}
NUMBERED = re.compile(r"\d+\.png|\d{9}-\d{9}-of-\d{9}\.npz")
"""What planish calls files in folders of their own."""
BEGUN = {"audit": ("audit.npz", "audit-suite.npz")}
"""Files that say that there is such work to go on with, where it is not the first one alone."""
LONGEST = 60
"""Letters of a folder's name that a model or several gave."""


def folder_name(*names: str) -> str:
    """Return a name for a folder from those of models: letters, digits, and what no shell takes for its own."""
    said = [*names[:3], *([f"{len(names) - 3}-more"] if len(names) > 3 else [])]
    parts = [re.sub(r"[^\w.]+", "-", name).strip("-._") for name in said]
    return "+".join(filter(None, parts))[:LONGEST] or "model"


def numbered(folder: Path) -> Iterator[Path]:
    """Yield the folder, and those of its name and a number: NAME, NAME-2, NAME-3, ..."""
    yield folder
    yield from (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))


def is_free(folder: Path) -> bool:
    """Say whether nothing lies there but what a kill leaves of a command that has written nothing yet."""
    if not folder.exists():
        return not folder.is_symlink()
    return folder.is_dir() and all(name.endswith(".part") or name == LOCK for name in os.listdir(folder))


def first_free(folder: Path) -> Path:
    """Return the first that is free of the folder and those of its name and a number."""
    return next(place for place in numbered(folder) if is_free(place))


def begun(folder: Path, kind: str, parts: str = "") -> list[Path]:
    """Return the folders of this name, with a number or without, that hold such work, the newest first.

    parts: folders in them that may hold a part of it instead, as a pattern.
    """
    own = re.compile(re.escape(folder.name) + r"(-\d+)?")
    return [path for path in all_begun(folder.parent, kind, parts) if own.fullmatch(path.name)]


def begun_within(folder: Path, kind: str) -> list[Path]:
    """Return the folders of this name, with a number or without, in which folders hold such work, the newest first."""
    first = itertools.takewhile(Path.exists, numbered(folder))
    return [path for path in reversed([*first]) if all_begun(path, kind)]


def all_begun(home: Path, kind: str, parts: str = "") -> list[Path]:
    """Return all folders in home that hold such work, the newest first. parts: as for `begun`."""
    names = BEGUN.get(kind, WRITTEN[kind][:1])
    patterns = [f"*/{name}" for name in names] + [f"*/{parts}/{name}" for name in names if parts]
    marks = [path for pattern in patterns for path in home.glob(pattern) if path.is_file()]
    newest = sorted(marks, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [*dict.fromkeys(home / path.relative_to(home).parts[0] for path in newest)]


def has_worked(folder: Path, kind: str) -> bool:
    """Say whether the folder holds work of this kind that planish did, whole or begun."""
    if kind == "report":
        return _is_report(folder)
    found = any((folder / name).is_file() for name in BEGUN.get(kind, WRITTEN[kind][:1]))
    return found and (kind != "train" or _is_run(folder))


def _is_run(folder: Path) -> bool:
    """Say whether config.toml, as others have one too, is a run's; an older planish wrote no digest above it."""
    return (folder / "provenance.json").is_file() or content_of(folder / "config.toml").startswith(HEAD.encode())


def _is_report(folder: Path) -> bool:
    try:
        found = json.loads(content_of(folder / "results.json"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"schema_version", "provenance"} <= found.keys()


def clear(folder: Path, kind: str) -> None:
    """Remove what planish wrote into the folder in work of this kind, if it did any; a training's goes with all that
    judged it."""
    kinds = (kind, *OF_A_MODEL) if kind == "train" else (kind,)
    for name in [name for own in kinds if has_worked(folder, own) for name in WRITTEN[own]]:
        for path in [*folder.glob(name)]:
            if "/" not in name or NUMBERED.fullmatch(path.name):
                remove(path)
        if "/" in name:
            remove_folder(folder / name.partition("/")[0])


def check_out(folder: Path, kind: str) -> None:
    """Raise BadInput, before work of this kind, if its folder cannot be written, or holds files of the user's that it
    would replace."""
    refuse_unwritable(folder / WRITTEN[kind][0])
    if foreign := [name for name in WRITTEN[kind] if (folder / name).is_file() and not _is_own(folder, name)]:
        what = f"{folder} holds {', '.join(foreign)}, which planish did not write and would replace"
        raise BadInput(f"{what}: name another --out")


def _is_own(folder: Path, name: str) -> bool:
    """Say whether planish wrote a file: of a command that was killed there may be arrays alone, which are sealed."""
    if name.endswith(".npz") and is_sealed(folder / name):
        return True
    return any(name in names and has_worked(folder, kind) for kind, names in WRITTEN.items())


def refuse_taken(folder: Path, kind: str, resumes: bool) -> None:
    """Raise BadInput if the folder holds such work. resumes: whether it can be gone on with as it is asked for."""
    if any((folder / name).exists() for name in BEGUN.get(kind, WRITTEN[kind][:1])):
        go_on = "--resume goes on with it, " if resumes else ""
        what = f"{folder} already holds {'an' if kind[0] in 'ae' else 'a'} {kind}".replace("a distances", "distances")
        raise BadInput(f"{what}: {go_on}--overwrite replaces it, another --out leaves it")


@contextmanager
def at_work(
    begin: Callable[[Path], Iterator[Step]], out: Path | None, free: Path, to_resume: Sequence[Path] | None = None
) -> Iterator[tuple[Path, Iterator[Step]]]:
    """Keep others out of the folder that is worked in, and give it with the steps of the work.

    begin: the work in a folder. out: the folder, if it is named. to_resume: else folders to go on in, of which the
    first is taken that holds the same work; None = nothing is gone on with. free: else this folder, or the first that
    is free of those with its name and a number. Raises BadInput.
    """
    with ExitStack() as held:
        if out is not None:
            held.enter_context(alone(out))
            yield out, begin(out)
            return
        for place in to_resume or ():
            with ExitStack() as tried:
                tried.enter_context(alone(place))
                try:
                    steps = begin(place)
                    first = [*itertools.islice(steps, 1)]
                except Unlike:
                    continue
                held.push(tried.pop_all())
            yield place, itertools.chain(first, steps)
            return
        place = next(place for place in numbered(free) if _taken(place, held))
        if to_resume is not None:
            LOG.warning("planish: nothing in %s to go on with as it is asked for; begun in %s", free.parent, place)
        yield place, begin(place)


def _taken(place: Path, held: ExitStack) -> bool:
    """Take a folder, if it is free and no other command takes it at the same time; say whether it was."""
    if not is_free(place):
        return False
    with ExitStack() as tried:
        try:
            tried.enter_context(alone(place))
        except BadInput:
            return False
        if not is_free(place):
            return False
        held.push(tried.pop_all())
    return True
