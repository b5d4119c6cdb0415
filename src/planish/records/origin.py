"""Where a record comes from: the model, the images, the attack, and the planish that made it."""

import hashlib
import math
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from planish.core.batch import ImageSet
from planish.core.words import number_of, without_password
from planish.registry import is_known

HOME = Path(__file__).parents[1]
"""The package's folder."""
PACKAGES = ("planish", "torch", "numpy", "safetensors")


@cache
def code_digest() -> str:
    """Return the SHA-256 of the package's own source files."""
    digest = hashlib.sha256()
    for path in sorted(HOME.rglob("*.py")):
        digest.update(str(path.relative_to(HOME)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def commit() -> str | None:
    """Return the git commit of the source tree, with "+changes" if it has any, or None outside a checkout."""
    git = ["git", "-C", str(HOME), "describe", "--always", "--abbrev=40", "--dirty=+changes"]
    try:
        head = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip()


def device_name(device: torch.device | str) -> str:
    """Return what the device calls itself."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {number_of(torch.get_num_threads(), 'thread')}"


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def provenance(device: torch.device | str) -> dict[str, Any]:
    """Return the day, versions, code digest, commit, device and command line, quoted for a shell, JSON-able."""
    path = Path(sys.argv[0])
    program = path.parent.name if path.name == "__main__.py" else path.name  # `python -m planish` is planish
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "code_digest": code_digest(),
        "commit": commit(),
        "device": device_name(device),
        "command": without_password(shlex.join([program, *sys.argv[1:]])),
    }


@cache  # it reads and parses the whole of a package's description, milliseconds each time
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def model_digest(model: nn.Module) -> str:
    """Return the SHA-256 of the model's parameters and buffers with their names."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        for part in _parts(name, value):
            digest.update(part)
    return digest.hexdigest()


def _parts(name: str, value: object) -> Iterator[bytes]:
    """Yield what a value of a state is: a tensor's type, shape and bytes, or those of what a container holds."""
    if isinstance(value, Tensor):
        yield f"{name} {value.dtype} {tuple(value.shape)}".encode()
        plain = value.detach()
        if plain.is_quantized:
            plain = plain.dequantize()
        elif plain.layout != torch.strided:
            plain = plain.to_dense()
        yield plain.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _parts(f"{name}.{key}", part)
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from _parts(f"{name}.{place}", part)
    else:  # the repr of an object of one's own may hold its address
        plain_value = isinstance(value, str | bytes | int | float | bool | torch.dtype | None)
        yield f"{name} {value!r}".encode() if plain_value else f"{name} {type(value).__qualname__}".encode()


class Digests:
    """The SHA-256 of images (N, ...) that come a block at a time, in order."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._pixels = hashlib.sha256(repr(tuple(shape)).encode())

    def add(self, x: Tensor) -> None:
        """Take the next images."""
        self._pixels.update(_bytes(x))

    def facts(self, labels: Tensor, indices: Tensor) -> dict[str, str]:
        """Return the digests of all images with their labels and indices, and of the pixels alone."""
        digest = self._pixels.copy()
        for values in (labels, indices):
            digest.update(_bytes(values))
        return {"digest": digest.hexdigest(), "pixels": self._pixels.hexdigest()}


def data_facts(images: ImageSet) -> dict[str, str]:
    """Return the digests of the images, labels and indices, and of the pixels alone."""
    digests = Digests(images.shape)
    for rows in images.blocks():
        digests.add(images.select(rows).x)
    return digests.facts(images.labels, images.indices)


def data_digest(images: ImageSet) -> str:
    """Return the SHA-256 of the images, labels and indices."""
    return data_facts(images)["digest"]


def _bytes(values: Tensor) -> memoryview:
    return values.detach().cpu().contiguous().numpy().data


def origin(
    model: nn.Module, clean_logits: Tensor, data: Mapping[str, str], about: Mapping[str, Any], **facts: Any
) -> dict[str, Any]:
    """Return a record's meta, JSON-able: what the caller knows, digests, the record's own facts, and provenance.

    model: as it was handed over. clean_logits: (N, K). data: what `data_facts` says of the images. about: such as
    "seed", "model" {"name"} and "data" {"name", "classes"}, to which digests and the number of classes are added.
    facts: of this kind of record. Provenance: versions, code digest, commit, device and command line.
    """
    return {
        **about,
        "model": {**about.get("model", {}), "digest": model_digest(model), "classes": clean_logits.shape[1]},
        "data": {**about.get("data", {}), **data},
        **facts,
        **provenance(clean_logits.device),
    }


def unnamed(fact: Any) -> Any:
    """Return a fact of a record without its name: the same model or data may be called otherwise now."""
    return {key: value for key, value in fact.items() if key != "name"} if isinstance(fact, Mapping) else fact


def same_fact(key: str, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Say whether two records agree on what they are of, such as "data" or "model", whatever its name.

    Data are the same if all that the earlier record says of them, digests too, holds: planish has come to say more.
    """
    known, found = unnamed(earlier.get(key)), unnamed(now.get(key))
    if key == "data" and isinstance(known, Mapping) and isinstance(found, Mapping):
        found = {name: found.get(name) for name in known}
    return bool(known == found)


def describe_attack(attack: object) -> Any:
    """Return an attack's identity, JSON-able: {"name": its class, "parameters": its fields, each described so too}.

    A function is {"name": ...}; parts that repeat are {"times": how often, "part": ...}. What is no dataclass has its
    `repr` for a name.
    """
    if attack is None or isinstance(attack, bool | int | str):
        return attack
    if isinstance(attack, float):
        return attack if math.isfinite(attack) else {"name": str(attack)}
    if isinstance(attack, list | tuple):
        return [describe_attack(part) for part in attack]
    if not is_dataclass(attack):
        return {"name": re.sub(r"<(?:function )?(\S+)(?: object)? at 0x[0-9a-f]+>", r"\1", repr(attack))}
    parameters = {field.name: describe_attack(getattr(attack, field.name)) for field in fields(attack) if field.repr}
    parts = parameters.get("attacks", [])
    if len(parameters) == 1 and parts and all(part == parts[0] for part in parts):
        return {"times": len(parts), "part": parts[0]}
    return {"name": type(attack).__name__, "parameters": parameters}


def attack_text(identity: Any) -> str:
    """Write an identity as one line, such as "2 x PGD(steps=50, start='uniform')"; a text is its own."""
    return identity if isinstance(identity, str) else _text(identity)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    if not isinstance(value, dict):
        return repr(value)
    if "times" in value:
        return f"{value['times']} x {_text(value['part'])}"
    if "parameters" not in value:
        return str(value["name"])
    own = value["parameters"]
    parts = map(_text, own["attacks"]) if list(own) == ["attacks"] else (f"{key}={_text(own[key])}" for key in own)
    return f"{value['name']}({', '.join(parts)})"


def same_attack(known: Any, attack: object, name: str) -> bool:
    """Say whether a record's identity is that of an attack asked for by this name.

    Under a registered name parameters alone are compared, so that a class may be renamed. known: a text in records of
    an earlier planish; under a registered name it counts as the same if it is of the same surrogates.
    """
    ours = describe_attack(attack)
    if known == ours:
        return True
    registered = any(is_known(package, name.partition("/")[0]) for package in ("attacks", "suites"))
    if isinstance(known, str):
        return known == attack_text(ours) or (registered and _digests(known) == _digests(attack_text(ours)))
    return registered and _without_names(known) == _without_names(ours)


def _digests(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"digest='(\w+)'", text)))


def _without_names(value: Any) -> Any:
    """Return an identity without the names of classes; functions keep theirs."""
    if isinstance(value, list):
        return [_without_names(part) for part in value]
    if not isinstance(value, dict):
        return value
    if "parameters" in value:
        return {key: _without_names(part) for key, part in value["parameters"].items()}
    return {key: _without_names(part) for key, part in value.items()}
