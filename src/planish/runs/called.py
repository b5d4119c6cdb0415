"""Training called from Python: `planish.train`, and `planish.train_steps`, whose loop is the caller's."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from planish.core.arguments import (
    check_classes,
    check_images,
    check_logits,
    device_named,
    is_loader,
    pair_of,
    path_of,
    seed_of,
    shown,
    threat_of,
)
from planish.core.batch import Batch
from planish.core.errors import BadInput, spelled
from planish.core.randomness import reproducible
from planish.core.threat import Linf, ThreatModel
from planish.data.images import Images, images_of
from planish.methods import Method
from planish.registry import components, make
from planish.runs import judge
from planish.runs import run as runs
from planish.runs.config import DataOptions, Experiment, Named, ThreatOptions, method_of
from planish.runs.run import Run, load_run
from planish.runs.train import new_model, train_into
from planish.training.collapse import OFF, Guard
from planish.training.loop import EpochRecord, fit, start
from planish.training.settings import Settings
from planish.training.state import State
from planish.training.step import check_trainable

TrainingData = str | Images | Batch | tuple[Any, Any] | Dataset[Any] | DataLoader[Any]


@dataclass
class TrainSteps(Iterator[EpochRecord]):
    """A training under way: iterate it for the record of each epoch; `run` is the run as far as it has come.

    Stop iterating to stop training. The model of `run` is in evaluation mode, to be judged between epochs; the next one
    puts it back.
    """

    records: Iterator[EpochRecord]
    so_far: Callable[[], Run]

    def __next__(self) -> EpochRecord:
        """Train an epoch and return its record. Raises FloatingPointError where the loss or a weight overflows."""
        return next(self.records)

    @property
    def run(self) -> Run:
        """The run with the epochs that are done. Raises BadInput where it is a folder's and none is."""
        return self.so_far()


def load_model(name: str | Path, *, device: torch.device | str = "cpu", built_by: str | None = None) -> nn.Module:
    """Return a model by name, as the command line takes it, in evaluation mode: images in [0, 1] to logits.

    name: "timm:resnet50", "hf:org/name", or "hf://user/repo" of a run on the Hub; a run folder;
    "file.py:function" or "package.module:function"; or an ONNX file. A library's model comes in `models.Normalized`:
    mean and std are those of its own configuration, which `print(model)` shows, so that radii stay in pixels of [0, 1].
    device: where it is brought to. built_by: of a run, as in `load_run`. Raises BadInput.
    """
    return judge.load_model(name, device, built_by).model.eval()


@spelled(threat=Linf, settings=Settings)
def train(
    model: nn.Module | str,
    data: TrainingData,
    *,
    method: Method | str = "planish-at",
    threat: ThreatModel | str,
    epochs: int | None = None,
    settings: Settings | None = None,
    guard: Guard = OFF,
    seed: int = 0,
    device: torch.device | str = "cpu",
    out: str | Path | None = None,
    weights: str | Path | None = None,
) -> Run:
    """Train a model against a threat, and return the run.

    model: a module from images in [0, 1] to logits, which is trained in place; or an architecture's name, such as
    "small-cnn" or "wide-resnet-34-10", or "file.py:function".
    data: a text such as "digits" or "cifar10:PATH"; or images and labels (x, labels), x (N, C, H, W) in [0, 1]; or a
    Batch, a Dataset of pairs, which is read once; or a DataLoader of pairs, which is read anew each epoch, in its own
    batches.
    method: such as planish.methods.SEAT(), or a name such as "seat", "llr-2" or "file.py:NAME".
    threat: such as planish.Linf("8/255"), or the text "Linf:8/255".
    epochs: in place of those of the settings, which are `Settings()` unless given, with batches no larger than the
    data.
    guard: against catastrophic overfitting, such as planish.Guard(every=25). seed: of everything random.
    device: to compute on.
    out: a run folder to write as well; then model, data and method must have names, so that it can be opened again.
    weights: to start from: of a run folder, a .safetensors file, or a checkpoint of torch.save.
    Raises BadInput.
    """
    how: dict[str, Any] = {"method": method, "threat": threat, "epochs": epochs, "settings": settings, "guard": guard}
    steps = train_steps(model, data, **how, seed=seed, device=device, out=out, weights=weights)
    for _ in steps:
        pass
    return steps.run


@spelled(threat=Linf, settings=Settings)
def train_steps(
    model: nn.Module | str,
    data: TrainingData,
    *,
    method: Method | str = "planish-at",
    threat: ThreatModel | str,
    epochs: int | None = None,
    settings: Settings | None = None,
    guard: Guard = OFF,
    seed: int = 0,
    device: torch.device | str = "cpu",
    out: str | Path | None = None,
    weights: str | Path | None = None,
) -> TrainSteps:
    """Train as `train` does, an epoch for each step of the caller's loop, which logs, judges and breaks as it likes.

    It yields records with .epoch, .metrics, .learning_rate and .seconds; .run is the run as far as it has come.
    Raises BadInput.
    """
    given, settings = settings is not None, Settings() if settings is None else settings
    if not isinstance(settings, Settings):
        raise BadInput(f"settings are planish.Settings(epochs=30), not {shown(settings)}")
    settings = settings if epochs is None else replace(settings, epochs=epochs)
    own, threat, seed = method_of(method), threat_of(threat), seed_of(seed)
    if not isinstance(guard, Guard):
        raise BadInput(f"a guard is planish.Guard(every=25), not {shown(guard)}")
    device = device_named(device)
    if out is not None:
        experiment = _experiment(model, data, method, threat, settings, guard, seed)
        if weights is not None:
            experiment = replace(experiment, model=replace(experiment.model, weights=str(path_of(weights))))
        folder, builder = path_of(out), model if isinstance(model, str) else None
        return TrainSteps(train_into(experiment, folder, device=device), lambda: load_run(folder, builder))
    images, some = _sample(data, model)
    settings = settings if given else replace(settings, batch_size=min(settings.batch_size, len(images)))
    config = _config(model, images, method, threat, settings, seed)
    network = _network(model, images, seed, weights).to(device)
    logits = check_logits(network, images.first(2).to(device).as_batch())
    check_classes(images.labels, logits.shape[1])
    if (threat.low, threat.high) != (0.0, 1.0):  # in which all images lie
        check_images(images.as_batch(), threat)
    check_trainable(network, some.to(device), own, settings.precision)
    classes = [str(number) for number in range(logits.shape[1])] if is_loader(data) else [*images.classes]
    state = start(network, settings)
    about = {"classes": classes, "channels": images.x.shape[1], "data": images.name}
    batches: Any = data if is_loader(data) else images
    records = fit(state, own, threat, batches, settings, seed=seed, guard=guard)
    return TrainSteps(_noted(records, state), lambda: Run(state.deployed.eval(), config, [*state.history], about))


def _noted(records: Iterator[EpochRecord], state: State) -> Iterator[EpochRecord]:
    """Yield the records, each with its learning rate and seconds in the history."""
    for record in records:
        state.history[-1] |= {"learning_rate": record.learning_rate, "seconds": record.seconds}
        yield record


def _sample(data: Any, model: nn.Module | str) -> tuple[Images, Tensor]:
    """Return the images that a model is made for and tried on, and the first two as training has them.

    Of a loader it is the first batch, unless a model is to be built.

    Raises BadInput.
    """
    if not is_loader(data) or isinstance(model, str):
        images = images_of(data)
        return images, images.first(2).float_pixels()
    with reproducible(0):
        first = next(iter(data), None)
    if first is None:
        raise BadInput(f"{shown(data)} yields no images: give it some")
    batch = pair_of(first)
    return images_of(batch), batch.x[:2]


def _network(model: object, images: Images, seed: int, weights: str | Path | None) -> nn.Module:
    network = new_model(Named(model), images, seed) if isinstance(model, str) else model
    if not isinstance(network, nn.Module):
        raise BadInput(f'the model is a torch.nn.Module or a name such as "small-cnn", not {shown(model)}')
    if weights is not None:
        runs.load_start(path_of(weights), network)
    return network


def _named(method: Method | str) -> Named:
    """Return a method's name and options; one that is not registered has its class's name."""
    if isinstance(method, str):
        return Named(method)
    names = [name for name, kind in components("methods").items() if kind is type(method)]
    parts: tuple[Any, ...] = fields(method) if is_dataclass(method) else ()
    own = {part.name: getattr(method, part.name) for part in parts}
    return Named(names[0] if names else type(method).__name__, own)


def _experiment(
    model: object, data: object, method: Method | str, threat: ThreatModel, settings: Settings, guard: Guard, seed: int
) -> Experiment:
    """Return the experiment of what has names. Raises BadInput."""
    for what, value in (("model", model), ("data", data)):
        if not isinstance(value, str):
            need = f"out= writes a run folder, which must name its {what} to be opened again"
            raise BadInput(f"{need}: give a text, not {shown(value)}")
    if threat != threat_of((threat.name, threat.radius)):
        raise BadInput("a run folder's threat is a norm and a radius: leave out low, high and levels, or out=")
    named = _named(method)
    if ":" not in named.name:
        _ = make("methods", named.name, named.options)
    options = ThreatOptions(threat.name, threat.radius)
    return Experiment(DataOptions(str(data)), Named(str(model)), named, options, settings, guard, seed)


def _config(
    model: object, images: Images, method: Method | str, threat: ThreatModel, settings: Settings, seed: int
) -> dict[str, Any]:
    """Return the configuration as the tables of a run folder's TOML, as far as things have names."""
    named = _named(method)
    return {
        "seed": seed,
        "data": {"source": images.name},
        "model": {"name": model if isinstance(model, str) else type(model).__name__},
        "method": {"name": named.name, **named.options},
        "threat": {"norm": threat.name, "radius": threat.radius},
        "settings": asdict(settings),
    }
