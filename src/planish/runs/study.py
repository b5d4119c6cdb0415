"""A sweep's memory: which values each trial has and how it ended, in an Optuna storage that many workers share."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from planish.core.errors import BadInput
from planish.core.words import without_password
from planish.runs.space import Dimension, Sweep

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState
    from sqlalchemy import NullPool
except ImportError as error:
    raise BadInput("a sweep needs Optuna, which is not installed: pip install optuna") from error

State = Literal["waiting", "running", "finished", "pruned", "failed"]
STATES: dict[Any, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
STARTUP = 5
"""Trials that end before others are held against their median, and before values are chosen by what was found."""


class JournalLock:
    """The system's lock on a journal, which a kill releases; a line that a kill cut short is taken off.

    Differs: Optuna's own locks lie there for 30 seconds after a kill, and a line that is cut short spoils the journal.
    """

    def __init__(self, journal: Path) -> None:
        self._journal, self._handle = journal, -1

    def acquire(self) -> bool:
        """Wait for the lock, and mend the journal."""
        import fcntl

        self._handle = os.open(f"{self._journal}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            content = self._journal.read_bytes()
            if not content.endswith(b"\n"):
                os.truncate(self._journal, content.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Let others in."""
        os.close(self._handle)


def _storage(where: str | Path) -> Any:
    """Return a journal, or a database to which no connection is kept: training would leave it idle for hours."""
    if "://" in str(where):
        return optuna.storages.RDBStorage(str(where), engine_kwargs={"poolclass": NullPool})
    lock: Any = JournalLock(Path(where))
    return optuna.storages.JournalStorage(JournalFileBackend(str(where), lock_obj=lock))


@dataclass(frozen=True)
class Outcome:
    """A trial as the storage knows it. values: by key. probes: held-out robust accuracy by epoch."""

    number: int
    state: State
    values: dict[str, Any]
    probes: dict[int, float]


@dataclass(frozen=True)
class Study:
    """The trials of a sweep in a storage. optuna: its own study of them."""

    sweep: Sweep
    optuna: Any

    @classmethod
    def opened(cls, sweep: Sweep, where: str | Path, name: str) -> "Study":
        """Return the study of this name, made where there is none. where: a storage's URL, or a journal file.

        One worker opens it at a time. Raises BadInput if the storage cannot be reached.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruner = optuna.pruners.MedianPruner(STARTUP, n_warmup_steps=sweep.first().settings.epochs // 2)
        directions = ["maximize"] * (2 if sweep.objective == "both" else 1)
        asked: dict[str, Any] = {"study_name": name, "load_if_exists": True, "directions": directions}
        try:
            return cls(sweep, optuna.create_study(storage=_storage(where), pruner=pruner, **asked))
        except Exception as error:  # every database's driver raises its own
            why = (" ".join(str(error).split()) or type(error).__name__)[:200]
            told = without_password(f"cannot use the storage {where} ({why}); docs/sweeps.md says how")
            raise BadInput(told) from error

    def outcomes(self) -> list[Outcome]:
        """Return all trials that there are, by number."""
        found = sorted(self.optuna.get_trials(deepcopy=False), key=lambda trial: trial.number)
        return [Outcome(t.number, STATES[t.state], dict(t.params), dict(t.intermediate_values)) for t in found]

    def ask(self) -> int:
        """Begin one more trial and return its number, which says its point of a grid. One worker asks at a time."""
        known = self.outcomes()
        if self.sweep.points and not any(one.state == "waiting" for one in known):
            self.optuna.enqueue_trial(self.sweep.points[len(known)])
        number: int = self.optuna.ask().number
        return number

    def values(self, number: int) -> dict[str, Any]:
        """Return a running trial's values by key, chosen now where they are not yet; seeded by its number."""
        seed, sampler = (self.sweep.seed + number) % 2**32, optuna.samplers.TPESampler
        self.optuna.sampler = sampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True)
        trial = self._trial(number)
        return {own.key: _suggested(trial, own) for own in self.sweep.space}

    def worse(self, number: int, epoch: int, robust: float) -> bool:
        """Note a trial's robust accuracy after an epoch; say whether it is so much worse than others' that it ends."""
        if self.sweep.objective == "both":
            return False
        trial = self._trial(number)
        if epoch not in self.outcomes()[number].probes:
            trial.report(robust, epoch)
        return bool(trial.should_prune())

    def tell(self, number: int, state: State, clean: float = 0.0, robust: float = 0.0) -> None:
        """Note how a trial ended."""
        values = [clean, robust] if self.sweep.objective == "both" else robust
        ended = next(own for own, name in STATES.items() if name == state)
        self.optuna.tell(number, values if state == "finished" else None, state=ended)

    def _trial(self, number: int) -> Any:
        """Return a running trial, also one that another worker has begun."""
        found = next(trial for trial in self.optuna.get_trials(deepcopy=False) if trial.number == number)
        return optuna.trial.Trial(self.optuna, found._trial_id)


def _suggested(trial: Any, own: Dimension) -> Any:
    if own.kind in ("choice", "grid"):
        return trial.suggest_categorical(own.key, own.values)
    if own.kind == "int":
        return trial.suggest_int(own.key, *own.values)
    return trial.suggest_float(own.key, *own.values, log=own.kind == "log")
