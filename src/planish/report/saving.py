"""What a record's own `save` writes: the record and its page, as the command that makes such records does."""

from pathlib import Path

from planish.core.arguments import path_of
from planish.core.errors import BadInput
from planish.records import audit, distances, evaluation
from planish.records.audit import Audit
from planish.records.distances import Distances
from planish.records.evaluation import Evaluation
from planish.records.origin import provenance
from planish.report.distances import write_distances
from planish.report.page import write_audit, write_report
from planish.report.tables import GALLERY, Entry
from planish.storage.files import remove


def save(record: Evaluation | Distances | Audit, folder: str | Path) -> Path:
    """Write a record with its page, or its figure, into the folder, and return the path of that. Raises BadInput."""
    place = path_of(folder)
    if place.suffix == ".npz" or place.is_file():
        raise BadInput(f"a record is saved with its page: name a folder, not the file {place}")
    if isinstance(record, Audit):
        audit.save(record, place)
        return write_audit(record, place)
    if isinstance(record, Distances):
        distances.save(record, place / distances.RECORD)
        return write_distances(record, place)
    remove(place / GALLERY)  # of an earlier one
    evaluation.save(record, place / evaluation.RECORD)
    name = str(record.meta.get("model", {}).get("name") or place.resolve().name)
    return write_report([Entry(name, record)], place, name, provenance("cpu"))
