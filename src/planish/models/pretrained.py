"""Models of other libraries, such as "timm:NAME" and "hf:NAME", with the normalization that is theirs."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from torch import nn

from planish.core.errors import BadInput, installed, nearest
from planish.storage.files import home

LibraryNetwork = tuple[nn.Module, tuple[float, ...], tuple[float, ...], tuple[str, ...]]
"""A network, mean and std that its images are normalised with per channel, and its classes' names, none if unknown."""
REFUSED = ("cache_dir", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
"""Options of timm.create_model that name files to read."""


def borrowed(name: str, classes: int, channels: int, options: Mapping[str, Any]) -> LibraryNetwork:
    """Return a model of timm, torchvision, Hugging Face's transformers or RobustBench's zoo. Raises BadInput.

    classes, channels: 0 leaves them as the model has them. options: `pretrained` (true: its published weights, else new
    ones), and the library's own, as numbers, true, false or plain words. Weights are read from safetensors files, or
    by a reader that takes nothing but tensors; code that a model brings along is never run.
    """
    for key, value in options.items():
        if key in REFUSED or not _plain(value):
            raise BadInput(f"model '{name}' takes numbers, true, false and plain words; not {key} = {value!r}")
    owner, _, own = name.partition(":")
    pretrained = options.get("pretrained", True)
    if not isinstance(pretrained, bool):
        raise BadInput(f"pretrained must be true or false, got {pretrained!r}")
    others = {key: value for key, value in options.items() if key != "pretrained"}
    if owner == "robustbench":
        if classes or others or not pretrained:
            raise BadInput(f"'{name}' comes as it was trained: it takes no options, and no other data's classes")
        return _robustbench(own), (0.0,) * 3, (1.0,) * 3, ()
    own_kind = {"timm": _timm, "torchvision": _torchvision}.get(owner, _hf)
    return own_kind(own, classes, channels, pretrained, others)


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(part) for part in value)
    return isinstance(value, bool | int | float) or (isinstance(value, str) and value.isidentifier())


def _library(module: str, prefix: str) -> Any:
    try:
        return installed(module, f"a model named {prefix}:...")
    except RuntimeError as error:
        told = f"{module} cannot be imported: {_first_line(error)}; it needs a torchvision that fits this torch"
        raise BadInput(told) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _timm(name: str, classes: int, channels: int, pretrained: bool, options: dict[str, Any]) -> LibraryNetwork:
    timm = _library("timm", "timm")
    if not timm.is_model(name):
        raise BadInput(f"timm has no model '{name}'.{nearest(name, timm.list_models())}")
    sizes = {"num_classes": classes, "in_chans": channels}
    wanted: dict[str, Any] = {key: count for key, count in sizes.items() if count}
    try:
        if pretrained:
            wanted["pretrained_cfg_overlay"] = _safe_source(timm, name)
        network = timm.create_model(name, pretrained=pretrained, **wanted, **options)
        known = network.pretrained_cfg
    except (TypeError, BadInput):
        raise
    except Exception as error:
        raise BadInput(f"timm cannot make '{name}': {type(error).__name__}: {_first_line(error)}") from error
    if getattr(network, "num_classes", None) == 0:
        raise BadInput(f"'timm:{name}' has no classes of its own; train it, or name one that was trained to classify")
    return network, _per_channel(known["mean"], channels), _per_channel(known["std"], channels), ()


def _safe_source(timm: Any, name: str) -> dict[str, Any]:
    """Return what makes timm read a safetensors file and nothing else. Raises BadInput if there are no weights."""
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        told = f"timm publishes no safetensors weights for '{name}'"
        raise BadInput(f"{told}; name another, or set model.pretrained=false")
    return {"hf_hub_filename": "model.safetensors", "url": "", "file": None, "custom_load": False}


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return a number per channel; their mean for each where the images have another number of channels."""
    return tuple(values) if channels in (0, len(values)) else (sum(values) / len(values),) * channels


def _torchvision(name: str, classes: int, channels: int, pretrained: bool, options: dict[str, Any]) -> LibraryNetwork:
    """Return a classifier of torchvision. Its weights are files of torch.save, read by a reader of tensors alone."""
    torchvision = _library("torchvision", "torchvision")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise BadInput(f"torchvision has no classifier '{name}'.{nearest(name, known)}")
    if channels not in (0, 3):
        raise BadInput(f"'torchvision:{name}' reads images of 3 channels, these have {channels}")
    published = torchvision.models.get_model_weights(name).DEFAULT
    prepared, names = published.transforms(), tuple(published.meta["categories"])
    if pretrained and classes not in (0, len(names)):
        told = f"'torchvision:{name}' was published for {len(names)} classes, these data have {classes}"
        raise BadInput(
            f"{told}; set model.pretrained=false, or take the same network of timm, which gets a new last layer"
        )
    sizes = {"num_classes": classes} if classes else {"num_classes": len(names)}
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=None, **sizes, **options)
        if pretrained:
            network.load_state_dict(published.get_state_dict(check_hash=True, weights_only=True, map_location="cpu"))
    except (TypeError, BadInput):
        raise
    except Exception as error:
        raise BadInput(f"torchvision cannot make '{name}': {type(error).__name__}: {_first_line(error)}") from error
    mean, std = (tuple(prepared.mean), tuple(prepared.std)) if _as_stated(network) else ((0.5,) * 3, (0.5,) * 3)
    return network, mean, std, names if pretrained else ()


def _as_stated(network: nn.Module) -> bool:
    """Say whether a network takes images normalised as its weights state.

    Inception and GoogLeNet were trained on images of mean and deviation 0.5: they turn what is stated into these if
    their transform_input is on, and take these if it is off, as it is unless asked for.
    """
    return bool(getattr(network, "transform_input", True))


def _hf(name: str, classes: int, channels: int, pretrained: bool, options: dict[str, Any]) -> LibraryNetwork:
    transformers = _library("transformers", "hf")
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        known, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
        _configure(config, name, channels, options)
        named = sorted((int(number), str(name)) for number, name in (getattr(config, "id2label", None) or {}).items())
        names = tuple(name for _, name in named)
        if classes:
            config.num_labels = classes
        kind = transformers.AutoModelForImageClassification
        network = _published(kind, name, config, bool(classes)) if pretrained else kind.from_config(config)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"cannot load 'hf:{name}': {type(error).__name__}: {_first_line(error)}") from error
    names = names if pretrained and classes in (0, len(names)) else ()
    return network.float(), *_normalization(name, known, getattr(config, "num_channels", 3)), names


def _configure(config: Any, name: str, channels: int, options: dict[str, Any]) -> None:
    """Put the options into the model's configuration. Raises BadInput."""
    known = config.to_dict()
    for key, value in options.items():
        if key not in known:
            raise BadInput(f"'hf:{name}' has no option '{key}'.{nearest(key, known)}")
        setattr(config, key, value)
    own = getattr(config, "num_channels", 3)
    if channels not in (0, own):
        raise BadInput(f"'hf:{name}' reads images of {own} channels, these have {channels}")


def _published(kind: Any, name: str, config: Any, new_head: bool) -> nn.Module:
    """Return the classifier with its published weights; new_head: those of its last layer may be missing."""
    network: nn.Module
    network, info = kind.from_pretrained(
        name,
        config=config,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=new_head,
        output_loading_info=True,
    )
    missing = sorted(set(info["missing_keys"]) & {key for key, _ in network.named_parameters()})
    if missing and not new_head:
        raise BadInput(f"'hf:{name}' was not published as a classifier of images: it has no weights for {missing[0]}")
    return network


def _normalization(name: str, known: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for pixels of [0, 1] from an image processor's configuration. Raises BadInput."""
    strange = [key for key in ("do_flip_channel_order", "rescale_offset") if known.get(key)]
    if strange:
        raise BadInput(f"'hf:{name}' wants its images prepared with {strange[0]}; wrap it in a function of your own")
    scale = 255 * float(known.get("rescale_factor", 1 / 255)) if known.get("do_rescale", True) else 255.0
    mean, std = (known.get(key) for key in ("image_mean", "image_std")) if known.get("do_normalize", True) else (0, 1)
    if mean is None or std is None:
        raise BadInput(f"'hf:{name}' does not state its image_mean and image_std; wrap it in a function of your own")
    both = (list(part) if isinstance(part, list | tuple) else [part] * channels for part in (mean, std))
    first, second = (tuple(float(value) / scale for value in part) for part in both)
    return first, second


def _robustbench(name: str) -> nn.Module:
    """Return a model of RobustBench's zoo, NAME or DATASET/THREAT/NAME, in evaluation mode. Raises BadInput.

    What is not there yet is downloaded into planish's own folder. Files are read by PyTorch's reader of tensors: one
    that holds more is refused.
    """
    _library("robustbench", "robustbench")
    zoo = _library("robustbench.utils", "robustbench")
    *place, own = name.split("/")
    if len(place) not in (0, 2):
        raise BadInput(f"write robustbench:NAME or robustbench:DATASET/THREAT/NAME, not robustbench:{name}")
    dataset, threat = place or ("cifar10", "Linf")
    try:
        with _tensors_only(), redirect_stdout(sys.stderr):
            found = zoo.load_model(own, model_dir=home() / "robustbench", dataset=dataset, threat_model=threat)
    except (KeyError, ValueError) as error:
        raise BadInput(f"RobustBench has no model '{own}' for {dataset} and {threat} ({_first_line(error)})") from error
    except Exception as error:
        remedy = "a file that holds more than tensors is never read: load it in a function of your own, file.py:NAME"
        told = f"{type(error).__name__}: {_first_line(error)}"
        raise BadInput(f"cannot load 'robustbench:{name}': {told}; {remedy}") from error
    model: nn.Module = found.eval()
    return model


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Whatever is loaded by `torch.load` meanwhile is read without unpickling, whoever calls it."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        _ = os.environ.pop(key) if before is None else os.environ.update({key: before})
