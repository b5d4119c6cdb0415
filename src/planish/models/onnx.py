"""Models that answer and tell no more: ONNX files, through onnxruntime."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planish.core.errors import BadInput, installed
from planish.models import BlackBox

LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])")
"""How an ONNX file names one beside it that holds weights: the length of the name, which follows."""


class Session(Protocol):
    """What is used of an onnxruntime session."""

    def get_inputs(self) -> list[Any]: ...
    def run(self, outputs: list[str] | None, feed: dict[str, Any]) -> list[Any]: ...


class Answers:
    """What the first output of a session says of float32 images (N, C, H, W).

    fixed: the batch size that the file insists on, None = any; images are then padded to whole batches.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        entry = session.get_inputs()[0]
        self.entry, batch = str(entry.name), entry.shape[0] if entry.shape else None
        self.fixed = batch if isinstance(batch, int) and batch > 0 else None

    def __call__(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """Return the logits (N, K)."""
        size = self.fixed or max(len(x), 1)
        return np.concatenate([self._answered(x[at : at + size]) for at in range(0, max(len(x), 1), size)])

    def _answered(self, x: NDArray[np.float32]) -> NDArray[Any]:
        missing = (self.fixed or len(x)) - len(x)
        padded = np.concatenate([x, np.repeat(x[:1], missing, 0)]) if missing else x
        return np.asarray(self.session.run(None, {self.entry: padded})[0])[: len(x)]


class OnnxModel(BlackBox):
    """An ONNX file as a model without gradients. digest: of its content, which tells it from others in records."""

    digest: Tensor

    def __init__(self, session: Session, content: bytes) -> None:
        super().__init__(Answers(session))
        digest = torch.frombuffer(bytearray(hashlib.sha256(content).digest()), dtype=torch.uint8)
        self.register_buffer("digest", digest)


def is_onnx(spec: str) -> bool:
    """Say whether a model's name is that of an ONNX file."""
    return spec.endswith(".onnx")


def load_onnx(path: Path) -> OnnxModel:
    """Return the model of an ONNX file, whose weights may lie in files beside it, as PyTorch exports them.

    Raises BadInput if it cannot be read or onnxruntime is missing.
    """
    if not path.is_file():
        raise BadInput(f"there is no file {path}")
    runtime = installed("onnxruntime", str(path))
    content = path.read_bytes()
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BadInput(f"{path} is not an ONNX model that onnxruntime reads: {error}") from error
    return OnnxModel(session, content + b"".join(_digest(file) for file in _beside(path, content)))


def _beside(path: Path, content: bytes) -> list[Path]:
    """Return the files in which weights lie that the file's content names."""
    names = {os.fsdecode(content[found.end() :][: found[1][0]]) for found in LOCATION.finditer(content)}
    return sorted(path.parent / name for name in names if "\0" not in name and (path.parent / name).is_file())


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
