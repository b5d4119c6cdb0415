"""The quickstart: six ways to train on handwritten digits, each attacked, in one report."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from planish.core.threat import Linf
from planish.evaluation.at_work import OnChunk
from planish.records.evaluation import Evaluation
from planish.runs.config import DataOptions, Experiment, Named, ThreatOptions
from planish.runs.judge import EvaluationConfig, LoadedModel, evaluate_into, load_model
from planish.runs.places import check_out
from planish.runs.train import train_into
from planish.training.loop import EpochRecord
from planish.training.settings import Settings

RADIUS = 0.2
EPOCHS = 15
METHODS = {
    "standard": "standard",
    "FGSM-AT": "fgsm",
    "SEAT": "seat",
    "LLR-2": "llr-2",
    "PGD-7 AT": "pgd-7",
    "planish-at": "planish-at",
}
ATTACKS = ("pgd-50-10", "multi-targeted-20-1", "planish-suite")


@dataclass(frozen=True)
class QuickstartStep:
    """How far the quickstart has come: a method's name, and what it has just done."""

    method: str
    event: EpochRecord | Evaluation

    @property
    def done(self) -> int:
        """How many of the method's epochs, clean pass and attacks are done; of a suite, all when the first stage is."""
        return self.event.epoch if isinstance(self.event, EpochRecord) else EPOCHS + 1 + len(self.event.asked)


def experiment(method: str, seed: int = 0) -> Experiment:
    """Return the quickstart's training of one method: the same data, network, radius and schedule for all."""
    return Experiment(
        data=DataOptions(source="digits"),
        model=Named("small-cnn", {"width": 16, "activation": "softplus"}),
        method=Named(method),
        threat=ThreatOptions("Linf", RADIUS),
        settings=Settings(epochs=EPOCHS, batch_size=64, learning_rate=0.1, weight_decay=5e-4),
        seed=seed,
    )


def quickstart(
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    on_chunk: Callable[[str], OnChunk] | None = None,
) -> Iterator[QuickstartStep]:
    """Train and judge every method into its own folder; yield after each epoch and each attack."""
    check_out(folder, "report")
    task = EvaluationConfig("digits", Linf(RADIUS), ATTACKS, seed=seed)
    for name, method in METHODS.items():
        place = folder / name.replace(" ", "-")
        for record in train_into(experiment(method, seed), place, resume=resume, overwrite=overwrite):
            yield QuickstartStep(name, record)
        model: LoadedModel = replace(load_model(str(place)), name=name)
        report = None if on_chunk is None else on_chunk(name)
        for evaluation in evaluate_into(model, task, place, resume=resume, overwrite=overwrite, on_chunk=report):
            yield QuickstartStep(name, evaluation)


def folders(folder: Path) -> list[Path]:
    """Return the quickstart's method folders, in order."""
    return [folder / name.replace(" ", "-") for name in METHODS]
