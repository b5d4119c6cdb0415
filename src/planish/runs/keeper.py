"""What a training run leaves in its folder, and when: at its start, within epochs, and after each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from planish.runs import run as runs
from planish.runs.config import Experiment, to_toml
from planish.runs.places import clear
from planish.runs.run import CONFIG, METRICS, PROVENANCE, RESUME, WEIGHTS
from planish.storage.files import write_lines, write_sealed_json, write_text
from planish.storage.reading import headed
from planish.training.state import State, to_go_on


@dataclass(frozen=True)
class Keeper:
    """Keeps a run in its folder. origin: where it comes from. corrupt: images that were found unreadable so far."""

    experiment: Experiment
    folder: Path
    state: State
    origin: dict[str, Any]
    corrupt: set[str]

    def begin(self, overwrite: bool) -> None:
        """Write what is known before the first step."""
        if overwrite:
            clear(self.folder, "train")
        write_text(headed(to_toml(self.experiment)), self.folder / CONFIG)
        self._tell_origin()

    def keep(self) -> None:
        """Write what a killed run goes on from."""
        if self.experiment.data.skip_corrupt:
            self._tell_origin()
        runs.save_resume(self.folder / RESUME, to_go_on(self.state))

    def keep_epoch(self, about: dict[str, Any]) -> None:
        """Write metrics and weights, also as the best if they are; then the resume file, which is what counts."""
        state, folder, about = self.state, self.folder, {**about, "epoch": self.state.epoch}
        write_lines(state.history, folder / METRICS)
        runs.save_weights(folder / WEIGHTS, state.deployed, about)
        robust = [entry.get("validation_robust_accuracy", -1.0) for entry in state.history]
        if robust[-1] > max(robust[:-1], default=-0.5):
            runs.save_weights(folder / runs.BEST, state.deployed, about)
        self.keep()

    def _tell_origin(self) -> None:
        write_sealed_json({**self.origin, "corrupt_images": sorted(self.corrupt)}, self.folder / PROVENANCE)


@dataclass
class Saver:
    """Called after each step: keeps the state whenever so many minutes have passed. Raises FloatingPointError."""

    state: State
    minutes: float
    keep: Callable[[], None]
    last: float = field(default_factory=lambda: monotonic())

    def __call__(self) -> None:
        """Keep the state if it is time, and worth keeping."""
        if monotonic() - self.last < 60 * self.minutes:
            return
        if not self.state.finite():
            raise FloatingPointError(
                f"the weights are not finite in epoch {self.state.epoch + 1}; lower the learning rate"
            )
        self.keep()
        self.last = monotonic()
