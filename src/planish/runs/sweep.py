"""A sweep carried out by any number of workers: each trial an ordinary run folder, taken by one worker at a time."""

import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from planish.core.errors import BadInput, Unlike, Unwritten
from planish.data.images import Images
from planish.evaluation.evaluate import evaluate_steps
from planish.records import evaluation as results
from planish.records.evaluation import Evaluation
from planish.report.front import Swept, TrialRow, chosen, write_sweep
from planish.runs.config import Experiment
from planish.runs.judge import EVALUATION
from planish.runs.places import check_out
from planish.runs.run import CONFIG, METRICS, load_run, read_history
from planish.runs.space import Sweep
from planish.runs.study import Outcome, Study
from planish.runs.train import prepare, train_into
from planish.storage.files import alone, write_sealed_json
from planish.storage.reading import Damaged, document_digest, read_json
from planish.training.loop import EpochRecord

DEFINITION, JOURNAL, HELD_OUT = "definition.json", "journal.log", "held-out"
PATIENCE, PAUSE, POLL = 120.0, 0.05, 1.0
"""Seconds that a worker waits for its turn to choose, between tries, and for other workers' trials."""
ROBUST = "validation_robust_accuracy"
OF_FILES = (Unlike, Unwritten, Damaged)
"""What is wrong with a sweep's files: no values of another trial would be right."""


class TrialStep(NamedTuple):
    """What a worker has just done in a trial: an epoch, a judgement, or how it ended ("pruned", "failed", ...)."""

    number: int
    event: EpochRecord | Evaluation | str


def trial_folder(folder: Path, number: int) -> Path:
    """Return the run folder of a trial."""
    return folder / f"trial-{number:04}"


def sweep_into(
    sweep: Sweep, folder: Path, storage: str | None = None, device: torch.device | str = "cpu"
) -> Iterator[TrialStep]:
    """Work on a sweep until every trial has ended, whoever works on it; yield what this worker does.

    The folder is shared by all workers, on one machine or on a file system with locks; a trial whose worker died is
    taken over where it was last saved. storage: an Optuna URL, or a journal file; None = a journal in the folder.
    Raises BadInput, Unlike if the folder holds another sweep.
    """
    sweep.check()
    with _turn(folder):
        check_out(folder, "sweep")
        _refuse_other_sweep(sweep, folder)
        digest = document_digest(sweep.definition())
        study = Study.opened(sweep, storage or folder / JOURNAL, f"{folder.resolve().name}-{digest[:12]}")
        write_sealed_json(sweep.definition(), folder / DEFINITION)
    while True:
        with _taken(study, folder) as number:
            if number is not None:
                yield from _carried_out(study, number, trial_folder(folder, number), device)
                continue
        if not any(one.state == "running" for one in study.outcomes()):
            break
        time.sleep(POLL)
    with _turn(folder):
        write_sweep(swept(study, folder), folder)


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Let one worker at a time in. Raises BadInput if others stay in for too long."""
    until = time.monotonic() + PATIENCE
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(alone(folder))
                break
            except BadInput:
                if time.monotonic() > until:
                    raise
            time.sleep(PAUSE)
        yield


def _refuse_other_sweep(sweep: Sweep, folder: Path) -> None:
    """Raise Unlike if the folder holds another sweep; more trials of the same are no other."""
    path, own = folder / DEFINITION, sweep.definition()
    known = read_json(path, "put it back, or choose another --out") if path.exists() else own
    if key := next((key for key in own if known.get(key) != own[key]), None):
        raise Unlike(f"{folder} holds another sweep, which differs in its {key}; choose another --out")


@contextmanager
def _taken(study: Study, folder: Path) -> Iterator[int | None]:
    """Take a trial that no worker has, or else a new one, and keep others off it meanwhile; None = there is none.

    Whoever holds a trial's folder has the trial, and the system takes it from the dead.
    """
    with ExitStack() as held:
        with _turn(folder):
            known = study.outcomes()
            left = [one.number for one in known if one.state == "running"]
            number = next((number for number in left if _free(study, number, folder, held)), None)
            if number is None and sum(one.state != "waiting" for one in known) < study.sweep.most:
                number = study.ask()
                held.enter_context(alone(trial_folder(folder, number)))
        yield number


def _free(study: Study, number: int, folder: Path, held: ExitStack) -> bool:
    """Take a trial's folder; say whether no worker had it, and the trial has not ended since."""
    with ExitStack() as tried:
        try:
            tried.enter_context(alone(trial_folder(folder, number)))
        except BadInput:
            return False
        if study.outcomes()[number].state != "running":
            return False
        held.push(tried.pop_all())
    return True


def _carried_out(study: Study, number: int, place: Path, device: torch.device | str) -> Iterator[TrialStep]:
    """Train and judge a trial from where it stands, and tell how it ended; one whose values are wrong has failed."""
    try:
        yield from _trained_and_judged(study, number, place, device)
    except OF_FILES:
        raise
    except (BadInput, FloatingPointError) as error:
        study.tell(number, "failed")
        yield TrialStep(number, f"failed: {error}")


def _trained_and_judged(study: Study, number: int, place: Path, device: torch.device | str) -> Iterator[TrialStep]:
    experiment = study.sweep.experiment(study.values(number))
    last = experiment.settings.epochs
    for entry in read_history(place / METRICS, {}):
        study.worse(number, entry["epoch"], entry[ROBUST])
    for record in train_into(experiment, place, device=device, resume=True):
        yield TrialStep(number, record)
        if study.worse(number, record.epoch, record.metrics[ROBUST]) and record.epoch < last:
            study.tell(number, "pruned")
            yield TrialStep(number, "pruned")
            return
    found = judge_held_out(experiment, place, study.sweep.attacks, device)
    study.tell(number, "finished", found.clean_accuracy().value, found.robust_accuracy().value)
    yield TrialStep(number, found)


def judge_held_out(
    experiment: Experiment, place: Path, attacks: tuple[str, ...], device: torch.device | str
) -> Evaluation:
    """Return how a run's model does on the images that were held out from its training; the record is kept."""
    path = place / HELD_OUT / EVALUATION
    held_out = prepare(experiment, device).held_out
    assert isinstance(held_out, Images)
    run, batch = load_run(place, experiment.model.name), held_out.to(device).as_batch()
    data = {"name": f"held-out training images of {held_out.name}", "classes": [*held_out.classes]}
    about = {"model": {"name": place.name}, "data": {**data, "images": len(held_out)}}
    earlier = results.load(path) if path.exists() else None
    options: dict[str, Any] = {"attacks": [*attacks], "seed": experiment.seed, "about": about, "earlier": earlier}
    for step in evaluate_steps(run.model.to(device), batch, threat=experiment.threat.model, **options):
        results.save(step.evaluation, path)
    return results.load(path)


def swept(study: Study, folder: Path) -> Swept:
    """Return what a sweep has found so far."""
    sweep, rows = study.sweep, [_row(one, folder) for one in study.outcomes() if one.state != "waiting"]
    best = chosen(rows)
    commands = [] if best is None else _commands(trial_folder(folder, best.number))
    return Swept(folder.resolve().name, sweep.definition(), tuple(rows), tuple(commands))


def _row(one: Outcome, folder: Path) -> TrialRow:
    path = trial_folder(folder, one.number) / HELD_OUT / EVALUATION
    record = results.load(path) if one.state == "finished" else None
    epochs = len(read_history(trial_folder(folder, one.number) / METRICS, {}))
    return TrialRow(one.number, one.state, one.values, epochs, one.probes, record)


def _commands(place: Path) -> list[str]:
    """Return the commands that train the winner anew on all of the training images."""
    return [shlex.join(["planish", "train", str(place / CONFIG), "--set", "data.validation=0"])]
