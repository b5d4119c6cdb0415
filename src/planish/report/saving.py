"""What a record's own `save` writes: the record and its page, as the command that makes such records does."""

from pathlib import Path

from planish.core.arguments import path_of
from planish.records import distances, evaluation
from planish.records.distances import Distances
from planish.records.evaluation import Evaluation
from planish.records.origin import provenance
from planish.report.distances import write_distances
from planish.report.page import write_report
from planish.report.tables import GALLERY, Entry
from planish.storage.files import remove


def save(record: Evaluation | Distances, folder: str | Path) -> Path:
    """Write a record with its page, or its figure, into the folder, and return the path of that. Raises BadInput."""
    place = path_of(folder)
    if isinstance(record, Distances):
        distances.save(record, place / distances.RECORD)
        return write_distances(record, place)
    remove(place / GALLERY)  # of an earlier one
    evaluation.save(record, place / evaluation.RECORD)
    name = str(record.meta.get("model", {}).get("name") or place.resolve().name)
    return write_report([Entry(name, record)], place, name, provenance("cpu"))
