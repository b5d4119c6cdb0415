"""Whatever record lies somewhere, read back."""

from collections.abc import Callable
from pathlib import Path

from planish.core.arguments import path_of
from planish.core.errors import BadInput
from planish.records import audit, distances, evaluation
from planish.records.audit import Audit
from planish.records.distances import Distances
from planish.records.evaluation import Evaluation

_READERS: dict[str, Callable[[Path], Evaluation | Distances | Audit]] = {
    evaluation.RECORD: evaluation.load,
    distances.RECORD: distances.load,
    audit.RECORD: lambda path: audit.load(path.parent),
}
"""By the names of their files."""


def load_record(path: str | Path) -> Evaluation | Distances | Audit:
    """Read the record that a command, or a record's `save`, has written.

    path: the folder, or where it holds several records one of its files: evaluation.npz, distances.npz or audit.npz.
    Raises BadInput where there is none, or several, and where it is damaged.
    """
    place, known = path_of(path), ", ".join(_READERS)
    if place.name in _READERS:
        return _READERS[place.name](place)
    found = [place / name for name in _READERS if (place / name).exists()]
    if len(found) > 1:
        raise BadInput(f"{place} holds several records: name one of {', '.join(map(str, found))}")
    if not found:
        raise BadInput(f"{place} holds no record: name a folder with one of {known}, or such a file")
    return _READERS[found[0].name](found[0])
