"""How much a model makes of an image, and so how many images go through it at a time."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from planish.core.affine import runs_as_a_copy
from planish.core.batch import Batch
from planish.core.errors import at_least, whole
from planish.core.modes import Counted

Measured = TypeVar("Measured", bound=tuple[Any, ...] | Tensor)
CHUNK, LEAST = 256, 16
"""Images that go through a model at a time: at most, and at least; smaller parts pay more for its weights."""
CACHED = 2**24
"""Bytes of a layer's output, of all images that go through together, that a processor reads back from its cache."""
OF_A_GPU = 4
"""The part of a GPU's memory that the outputs of all layers may take: a gradient keeps most of them."""
UNKNOWN = 2**20
"""Numbers of all images that go through a model of which nothing is known yet."""


class Footprint(NamedTuple):
    """Bytes that a model's layers make of one image: the largest output, and all of them."""

    largest: int
    total: int

    def fitting(self, device: torch.device, copies: int = 1) -> int:
        """Return how many images fit: one layer's outputs into a processor's cache, or all into a part of a GPU."""
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            return _usual(memory // OF_A_GPU // self.total, copies)
        return _usual(CACHED // self.largest if device.type == "cpu" else CHUNK, copies)


_MOST: ContextVar[int | None] = ContextVar("images that may go through a model at a time", default=None)
_KNOWN: WeakKeyDictionary[nn.Module, dict[torch.Size, Footprint]] = WeakKeyDictionary()


@contextmanager
def at_a_time(images: int | None) -> Iterator[None]:
    """Let no more images through a model at a time within; None = as many as before. Outcomes do not depend on it.

    Raises BadInput.
    """
    at_least(1, **{"batch size": images})
    whole(**{"batch size": images})
    token = _MOST.set(min((most for most in (images, _MOST.get()) if most is not None), default=None))
    try:
        yield
    finally:
        _MOST.reset(token)


def images_at_a_time(model: nn.Module, x: Tensor, chunk: int | None = None, copies: int = 1) -> int:
    """Return how many images like x (N, ...) go through a model at a time, 1 at least.

    chunk: what a call asks for; None = as many as fit, from 16 to 256, by what the model's first forward showed.
    copies: of each image, or draws of the model, that are held at once, and all count. Raises BadInput for a chunk
    that is no whole number from 1.
    """
    if chunk is not None:
        at_least(1, chunk=chunk)
        whole(chunk=chunk)
    most = _MOST.get()
    asked = _fitting(model, x, copies) if chunk is None else max(1, chunk // copies)
    return asked if most is None else min(asked, max(1, most // copies))


def in_parts(model: nn.Module, x: Tensor, chunk: int | None = None) -> Tensor:
    """Return the outputs (N, K) for images (N, ...), which go through in parts; the first shows how many fit."""
    parts: list[Tensor] = []
    at = 0
    while at < len(x) or not parts:
        part = x[at : at + images_at_a_time(model, x, chunk)]
        with _observed(model.given if isinstance(model, Counted) else model, part):
            parts.append(model(part))
        at += len(part)
    return torch.cat(parts)


def in_chunks(
    measure: Callable[[nn.Module, Batch], Measured], model: nn.Module, batch: Batch, chunk: int | None = None
) -> Measured:
    """Return what the measure says of all images, its (N, ...) tensors joined. The outcome does not depend on `chunk`.

    measure: takes the model and a batch, and returns a tensor whose first dimension is the images, or a named tuple of
    such, as all measures of an audit but estimated constants do.
    """
    size = images_at_a_time(model, batch.x, chunk)
    parts = [measure(model, batch.select(slice(at, at + size))) for at in range(0, max(len(batch.x), 1), size)]
    found: Measured = _joined(parts)
    return found


def _joined(parts: Any) -> Any:
    first = parts[0]
    return torch.cat(parts) if isinstance(first, Tensor) else type(first)(*map(_joined, zip(*parts, strict=True)))


@contextmanager
def _observed(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Within, a forward of images x (N, ...) shows what the model makes of one, unless that is known or N is small.

    Modules that run as a copy, compiled or replicated, are left alone: nothing is known of them.
    """
    if len(x) < LEAST or x.shape[1:] in _KNOWN.get(model, ()) or any(map(_is_closed, model.modules())):
        yield
        return
    made = [x.nbytes]

    def see(module: nn.Module, given: object, output: object) -> None:
        parts = output if isinstance(output, tuple | list) else [output]
        made.extend(part.nbytes for part in parts if isinstance(part, Tensor))

    with ExitStack() as hooks:
        for module in model.modules():
            if not module._modules:
                hooks.enter_context(module.register_forward_hook(see))
        yield
    _KNOWN.setdefault(model, {})[x.shape[1:]] = Footprint(max(made) // len(x), sum(made) // len(x))


def _fitting(model: nn.Module, x: Tensor, copies: int) -> int:
    """Return how many images like x fit; as long as nothing is known of the model, by their own size. Few always do."""
    if 0 < len(x) * copies <= LEAST:
        return LEAST // copies
    shape = x.shape[1:]
    known = (_KNOWN[part][shape] for part in model.modules() if shape in _KNOWN.get(part, ()))
    found = next(known, None)
    if found is None:
        return _usual(UNKNOWN // max(shape.numel(), 1), copies)
    return found.fitting(x.device, copies)


def _usual(images: int, copies: int = 1) -> int:
    """Return how many images go through in so many copies each, where so many fit in one."""
    return max(1, LEAST // copies, min(images // copies, CHUNK))


def _is_closed(module: nn.Module) -> bool:
    return runs_as_a_copy(module) or isinstance(module, torch.jit.ScriptModule)
