"""The folders of all shards made one folder, as one process would have written it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from planish.core.errors import BadInput
from planish.evaluation.adversarials import save_joined
from planish.evaluation.image_files import IMAGES, MANY_IMAGES, ImageFiles, files_in, joined_files
from planish.evaluation.naming import attacks_of
from planish.evaluation.stages import left
from planish.records import distances as distance_records
from planish.records import evaluation as results
from planish.records.distances import Distances
from planish.records.evaluation import Evaluation
from planish.records.shards import ImageShard, joined, placed
from planish.records.store import Columned
from planish.report.tables import GALLERY
from planish.runs.beside import load_gallery
from planish.runs.judge import DISTANCES, EVALUATION
from planish.runs.places import check_out, clear, refuse_taken

FILES = {"evaluation": EVALUATION, "distances": DISTANCES}


def kind_of(folders: Sequence[Path]) -> str:
    """Return what all the folders hold: "evaluation" or "distances". Raises BadInput that names one without."""
    for kind, name in FILES.items():
        if all((folder / name).exists() for folder in folders):
            return kind
    for kind, name in FILES.items():
        if any((folder / name).exists() for folder in folders):
            without = next(folder for folder in folders if not (folder / name).exists())
            raise BadInput(f"{without} holds no {name}, as the others do: leave it out, or give its {kind} again")
    known = " nor ".join(FILES.values())
    raise BadInput(f"{folders[0]} holds neither {known}; planish evaluate --shard NUMBER/OF writes a shard's folder")


def record_in(folder: Path) -> Evaluation | Distances:
    """Return the record that a folder holds. Raises BadInput."""
    kind = kind_of([folder])
    return results.load(folder / EVALUATION) if kind == "evaluation" else distance_records.load(folder / DISTANCES)


def merge(folders: Sequence[Path], out: Path, overwrite: bool = False) -> Evaluation | Distances:
    """Join the folders of all shards into one, and return its record, whose meta names the attacks that are "left".

    overwrite: what planish wrote into the folder in such work is replaced; without it, the folder is free, or holds the
    record that these shards went on with; it is none of theirs. Raises BadInput.
    """
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise BadInput(f"{out} is a shard's folder, and the whole would replace what it holds: name another --out")
    if kind_of(folders) == "distances":
        found = joined({str(folder): distance_records.load(folder / DISTANCES) for folder in folders})
        _free(found, distance_records.load(out / DISTANCES) if (out / DISTANCES).exists() else None, out, overwrite)
        distance_records.save(found, out / DISTANCES)
        return found
    parts = {folder: results.load(folder / EVALUATION) for folder in folders}
    record = _pruned(joined({str(folder): part for folder, part in parts.items()}))
    _free(record, results.load(out / EVALUATION) if (out / EVALUATION).exists() else None, out, overwrite)
    _join_images(parts, record, out)
    pictures = [place / GALLERY for place in (out, *folders) if (place / GALLERY).exists()]
    save_joined([load_gallery(path) for path in pictures], record.indices, out / GALLERY)
    results.save(record, out / EVALUATION)
    return record


def _free(record: Columned, before: Columned | None, out: Path, overwrite: bool) -> None:
    """Make the folder free for the record. Raises BadInput if it holds one that this one does not go on with."""
    kind = "distances" if isinstance(record, Distances) else "evaluation"
    check_out(out, kind)
    if overwrite:
        clear(out, kind)
    elif before is None or not _goes_on(record, before):
        refuse_taken(out, kind, resumes=False)


def _goes_on(record: Columned, before: Columned) -> bool:
    """Say whether a record is of the same work as one before it, and holds all its columns."""
    same = all(record.meta.get(key) == before.meta.get(key) for key in ("model", "data", "threat", "seed"))
    if not same or record.names[: len(before.names)] != before.names:
        return False
    pairs = zip(record.columns, before.columns, strict=False)
    return all(np.array_equal(own.passes, old.passes) for own, old in pairs)


def _pruned(record: Evaluation) -> Evaluation:
    """Return the record with the names only of attacks that are left indeed, now that all the images are there."""
    names = [name for name in record.meta.get("left", ()) if _is_left(name, record)]
    known = {key: value for key, value in record.meta.items() if key != "left"}
    return replace(record, meta=known | ({"left": names} if names else {}))


def _is_left(name: str, record: Evaluation) -> bool:
    try:
        attacks = attacks_of([name], int(record.meta["model"]["classes"]), norm=record.norm)
    except BadInput:  # the user's own, or one that asks for surrogates: the evaluation itself will see
        return True
    return bool(left(attacks, record))


def _join_images(parts: dict[Path, Evaluation], record: Evaluation, out: Path) -> None:
    """Join the adversarial images, where every shard kept them."""
    rows = {}
    for folder, part in parts.items():
        facts = part.meta["shard"]
        rows[folder] = ImageShard(facts["number"], facts["of"]).rows(facts["images"], part.meta["seed"])
    if all((folder / IMAGES).exists() for folder in parts):
        images = [results.load_adversarials(folder / IMAGES)[0] for folder in parts]
        whole = placed(images, [own.numpy() for own in rows.values()])
        results.save_adversarials(whole, record.indices, out / IMAGES)
    elif all((folder / MANY_IMAGES).exists() for folder in parts):
        image = results.load_adversarials(files_in(next(iter(parts)) / MANY_IMAGES)[0])[0].shape[1:]
        found = [
            (rows[folder], ImageFiles(folder / MANY_IMAGES, part.indices, image)) for folder, part in parts.items()
        ]
        joined_files(found, ImageFiles(out / MANY_IMAGES, record.indices, image))
