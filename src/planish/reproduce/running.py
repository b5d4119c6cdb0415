"""A table's rows trained and judged; what is finished is never run again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from planish.attacks.suites import Suite
from planish.core.errors import BadInput
from planish.evaluation.at_work import OnChunk
from planish.evaluation.naming import attacks_of, distance_attacks
from planish.records import distances
from planish.records import evaluation as results
from planish.records.distances import Distances, Numbers
from planish.records.evaluation import Evaluation
from planish.registry import called_once
from planish.reproduce.numbers import measure as measure_numbers
from planish.reproduce.scales import SEED, Scale, attack_of, images_judged, scale_of, scaled
from planish.reproduce.tables import PaperColumn, PaperTable, Row
from planish.runs.config import Experiment, parsed, written
from planish.runs.judge import DISTANCES, EVALUATION, EvaluationConfig, evaluate_into, load_model, measure
from planish.runs.run import CONFIG, METRICS, PROVENANCE, RESUME, WEIGHTS, copy_run, read_metadata
from planish.runs.taken import refuse_other_data, same_run
from planish.runs.train import train_into, training_images
from planish.storage.files import write_bytes
from planish.storage.reading import read_json
from planish.training.loop import EpochRecord

SNAPSHOTS = "snapshots"
REMEDY = "move its folder away to train the row again"


@dataclass(frozen=True)
class Job:
    """A table at a scale in a folder. train, test: the data; None = the table's own name for it, and train."""

    table: PaperTable
    scale: Scale
    out: Path
    train: str | None = None
    test: str | None = None
    device: str = "cpu"

    @classmethod
    def of(cls, table: PaperTable, scale: str, out: Path, **options: str | None) -> "Job":
        """Return the job of a scale by its name; it goes to out/TABLE/SCALE. Raises BadInput."""
        chosen = scale_of(table, scale)
        return cls(table, chosen, out / table.name / chosen.name, **options)  # type: ignore[arg-type]

    def folder(self, row: str) -> Path:
        """Return where a row is, or "source.NAME", a network that black-box images are made on."""
        return _place(self.out, "methods", row)

    def experiment(self, row: str) -> Experiment:
        """Return the training of a row, or of another seed of it, at this scale. Raises BadInput if planish cannot."""
        found, (_, _, seed) = self.row(row), row.partition(SEED)
        if found.experiment is None:
            raise BadInput(f"{self.table.name} {row} cannot be trained: {found.missing}")
        experiment = scaled(found.experiment, self.scale, self.train)
        own = {**experiment.method.options, **self.scale.options.get(row.partition(SEED)[0], {})}
        return replace(
            experiment, seed=experiment.seed + int(seed or 0), method=replace(experiment.method, options=own)
        )

    def row(self, run: str) -> Row:
        """Return the row that a training belongs to. Raises BadInput."""
        return self.table.row(run.partition(SEED)[0])

    def columns(self) -> dict[str, PaperColumn]:
        """Return the table's columns and, where rows are judged in a ball, planish's own suite and the scale's own."""
        if self.table.head.radius is None:
            return self.table.columns
        suite = "planish-suite"
        own = {suite: PaperColumn(f"{suite}, not in the paper", "accuracy", suite)}
        own |= {name: PaperColumn(f"{name}, not in the paper", name) for name in self.scale.beside}
        return {**self.table.columns, **own}

    def record(self, row: str, column: PaperColumn) -> Path:
        """Return the folder of the record that measures the column."""
        if column.by_numbers:
            places = "" if column.places == 1 else f"-{column.places}"
            return self.folder(row) / "judged" / f"{column.statistic.record}{places}"
        attack = attack_of(column, self.scale) or "clean"
        name = attack.replace("/", ".") + (f".{column.source}" if _carried(column) else "")
        return _place(self.folder(row) / "judged", "suites", name)


def _place(folder: Path, package: str, name: str) -> Path:
    """Return where something of that name lies in a folder, which may be where an earlier planish has put it."""
    now, once = folder / name, folder / called_once(package, name)
    return once if once.exists() and not now.exists() else now


def _carried(column: PaperColumn) -> bool:
    return column.source is not None and column.measure == "accuracy"


@dataclass(frozen=True)
class Step:
    """How far a job has come: a row or source, and what it has just done."""

    row: str
    event: EpochRecord | Evaluation | Distances | Numbers


def chosen_rows(table: PaperTable, rows: Sequence[str] | None, scale: Scale) -> tuple[str, ...]:
    """Return the rows to run: those named, or all that planish can train, in the scale's order.

    "seat" is a row with all seeds of the scale, "seat.seed-1" one of its trainings. Raises BadInput if nothing is
    measured, or for a name that is neither.
    """
    if all(column.measure in ("given", "missing") for column in table.columns.values()):
        raise BadInput(f"{table.name} cannot be run: {next(filter(None, (c.why for c in table.columns.values())))}")
    for name in rows or ():
        row, _, seed = name.partition(SEED)
        if table.row(row).experiment is None:
            raise BadInput(f"{table.name} {row} cannot be trained: {table.row(row).missing}")
        if seed and name not in scale.runs(row):
            known = ", ".join(scale.runs(row))
            raise BadInput(f"{table.name} has no '{name}' at scale {scale.name}. Its trainings of {row}: {known}")
    return tuple(rows) if rows else (*scale.seeds, *(row for row in table.trainable if row not in scale.seeds))


def reproduce(job: Job, rows: Sequence[str], on_chunk: Callable[[str], OnChunk] | None = None) -> Iterator[Step]:
    """Train and judge the rows, all with their first seed, then with the second and so on; yield after each epoch and
    each attack, all saved by then.

    A training that another row or table has finished at this scale, in the folder beside, is copied, not run again.
    Raises BadInput, before anything is written, if a folder holds a run of another configuration or of other data.
    """
    for name, (folder, experiment) in _checked(job, rows).items():
        if not (folder / CONFIG).exists() and (other := twin(job, experiment)):
            copy_run(other, folder)
        if not trained(folder, experiment):
            _snapshot(job, folder)
            for record in train_into(experiment, folder, device=job.device, resume=True):
                _snapshot(job, folder)
                yield Step(name, record)
        if not name.startswith("source."):
            yield from _judged(job, name, on_chunk)


def judge(job: Job, rows: Sequence[str], on_chunk: Callable[[str], OnChunk] | None = None) -> Iterator[Step]:
    """Judge those trainings of the rows that are finished, where that is missing, and train nothing.

    Yields after each attack, which is saved by then. Raises BadInput as `reproduce` does.
    """
    for name, (folder, experiment) in _checked(job, rows).items():
        if trained(folder, experiment) and not name.startswith("source."):
            yield from _judged(job, name, on_chunk)


def _snapshot(job: Job, folder: Path) -> None:
    """Keep the weights of the last whole epoch, if it is one of those to be kept."""
    epoch = len((folder / METRICS).read_text().splitlines()) if (folder / RESUME).exists() else 0
    if epoch and job.scale.snapshots and epoch % job.scale.snapshots == 0:
        write_bytes((folder / WEIGHTS).read_bytes(), folder / SNAPSHOTS / f"epoch-{epoch:03}.safetensors")


def _runs(job: Job, rows: Sequence[str]) -> dict[str, tuple[Path, Experiment]]:
    """Return what is to be trained, in order: networks that black-box images are made on come first."""
    needed = {column.source for column in job.columns().values() if column.source is not None and _carried(column)}
    runs = {f"source.{name}": scaled(job.table.sources[name], job.scale, job.train) for name in sorted(needed)}
    rounds = zip_longest(*(job.scale.runs(row) for row in rows))
    runs |= {name: job.experiment(name) for each in rounds for name in each if name}
    return {name: (job.folder(name), experiment) for name, experiment in runs.items()}


def _checked(job: Job, rows: Sequence[str]) -> dict[str, tuple[Path, Experiment]]:
    """Return the runs, every folder checked, against the data only where it is named: finished rows do not need it."""
    digests: dict[str, str] = {}
    runs = _runs(job, rows)
    for name in job.table.trainable:
        check(job.folder(name), job.experiment(name))
    for folder, experiment in runs.values():
        check(folder, experiment)
        if job.train is not None and (folder / CONFIG).exists():
            key = repr((experiment.data, experiment.seed))
            digests[key] = digests.get(key) or training_images(experiment)[0].digest()
            refuse_other_data(folder, digests[key])
    return runs


def check(folder: Path, experiment: Experiment) -> None:
    """Raise BadInput if the folder holds a run of another configuration."""
    if (folder / CONFIG).exists() and not same_run(parsed(written(folder / CONFIG)), experiment):
        what = f"{folder} was made by another version of this recipe or scale (see its {CONFIG})"
        raise BadInput(f"{what}; nothing was changed: choose another --out, or move it away")


def twin(job: Job, experiment: Experiment) -> Path | None:
    """Return the folder of a finished training of the same experiment on the same images, of any table, or None."""
    for config in sorted(job.out.parent.parent.glob(f"*/{job.scale.name}/*/{CONFIG}")):
        if same_run(parsed(written(config)), experiment) and trained(config.parent, experiment):
            digest = read_json(config.parent / PROVENANCE, REMEDY).get("data_digest")
            return config.parent if digest == training_images(experiment)[0].digest() else None
    return None


def trained(folder: Path, experiment: Experiment) -> bool:
    """Say whether the folder holds the whole training: its metrics and the weights, which are written after these."""
    if not all((folder / name).exists() for name in (WEIGHTS, METRICS, PROVENANCE)):
        return False
    epochs = experiment.settings.epochs
    with suppress(BadInput):  # damaged weights are told where they are loaded
        if read_metadata(folder / WEIGHTS).get("epoch", epochs) < epochs:
            return False
    return len((folder / METRICS).read_text().splitlines()) >= epochs


def _judged(job: Job, row: str, on_chunk: Callable[[str], OnChunk] | None) -> Iterator[Step]:
    """Judge a trained row by every attack of the table, each in a folder of its own, so that each faces all images."""
    model, shown = None, None if on_chunk is None else on_chunk(row)
    for column in job.columns().values():
        if not column.is_judged or finished(job, row, column):
            continue
        model = model or replace(load_model(str(job.folder(row)), job.device), name=row)
        task, place = _task(job, row, column), job.record(row, column)
        if column.by_numbers:
            yield Step(row, measure_numbers(model, task, column, place, device=job.device))
        elif column.by_distance:
            yield from (Step(row, found) for found in measure(model, task, place, device=job.device, resume=True))
        else:
            found = evaluate_into(model, task, place, device=job.device, resume=True, on_chunk=shown)
            yield from (Step(row, record) for record in found)


def _task(job: Job, row: str, column: PaperColumn) -> EvaluationConfig:
    head, attack = job.table.head, attack_of(column, job.scale)
    threat = head.threat(job.row(row).radius)
    return EvaluationConfig(
        data=job.test or job.train or job.experiment(row).data.source,
        threat=replace(threat, radius=0.0) if column.by_distance else threat,
        attacks=() if attack is None else (attack,),
        limit=images_judged(job.table, job.scale),
        precision=job.scale.precision,
        surrogates=(str(job.folder(f"source.{column.source}")),) if _carried(column) else (),
    )


def record_of(job: Job, row: str, column: PaperColumn) -> Evaluation | Distances | Numbers | None:
    """Return the record that measures the column, as far as it has come; None if it is not begun. Raises BadInput."""
    place = job.record(row, column)
    if column.by_distance:
        return distances.load(place / DISTANCES) if (place / DISTANCES).exists() else None
    if column.by_numbers:
        return distances.load_numbers(place / distances.NUMBERS) if (place / distances.NUMBERS).exists() else None
    return results.load(place / EVALUATION) if (place / EVALUATION).exists() else None


def finished(job: Job, row: str, column: PaperColumn) -> bool:
    """Say whether the column's record is complete. Raises BadInput if it is of another ball or other images."""
    record, threat = record_of(job, row, column), _task(job, row, column).threat
    if record is None:
        return False
    limit, images = images_judged(job.table, job.scale), len(record.labels)
    short = any(note.startswith("asked for ") for note in record.meta.get("notes", []))
    same_ball = (record.norm, record.radius) == (threat.name, threat.radius)
    if not same_ball or (limit is not None and images != limit and not short):
        what = f"{job.record(row, column)} was judged at another radius or on other images"
        raise BadInput(f"{what}; nothing was changed: choose another --out")
    attack = attack_of(column, job.scale)
    return attack is None or isinstance(record, Numbers) or _complete(record, attack)


def _complete(record: Evaluation | Distances, attack: str) -> bool:
    """Say whether an attack or every stage of a suite has its column."""
    if attack in record.names:
        return True
    classes = int(record.meta["model"]["classes"])
    if isinstance(record, Distances):
        return set(distance_attacks([attack], classes, norm=record.norm)) <= set(record.names)
    if attack.startswith("transfer"):
        return False
    made = attacks_of([attack], classes, norm=record.norm)[attack]
    done = {column.name.partition("/")[2]: column for column in record.columns if column.name.startswith(f"{attack}/")}
    return isinstance(made, Suite) and made.following(done, len(record.labels)) is None


def state(job: Job, row: str) -> str:
    """Return "missing", "not run", "begun", "trained" or "finished". Raises BadInput for a run of something else."""
    if job.row(row).experiment is None:
        return "missing"
    folder, experiment = job.folder(row), job.experiment(row)
    check(folder, experiment)
    if not trained(folder, experiment):
        return "begun" if (folder / CONFIG).exists() else "not run"
    needed = [column for column in job.columns().values() if column.is_judged]
    return "finished" if all(finished(job, row, column) for column in needed) else "trained"


def provenance_of(job: Job, row: str) -> dict[str, object]:
    """Return a row's provenance file, as training wrote it."""
    return read_json(job.folder(row) / PROVENANCE, REMEDY)
