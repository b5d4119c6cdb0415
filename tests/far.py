"""A device that is not the CPU, on a machine that has no other: PyTorch's "meta", with the numbers on the CPU.

`Far` tensors claim to be on it and hold a CPU tensor. Inside `elsewhere()` every operation is refused where CUDA would
refuse it, or would quietly copy: tensors of both devices in one operation (numbers and 0-d CPU tensors may), a
generator of the other device. What is computed is what the CPU computes, so that whole attacks and trainings can be
compared bit for bit. `Elsewhere.waits` lists the operations for which the host of an accelerator would wait.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from planish.core.batch import Batch

FAR = torch.device("meta")
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "equal",
    "masked_select",
    "unique_dim",
    "_unique2",
    "bincount",
    "_linalg_eigh",
    "_linalg_svd",
    "linalg_cholesky_ex",
    "repeat_interleave",
}
"""Operations of ATen for which CUDA makes the host wait, with masks as indices and copies between the devices."""


class Far(Tensor):
    """A tensor that claims to be far away; `near` holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        layout = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        return Tensor._make_wrapper_subclass(cls, near.size(), **layout, device=FAR)

    def __init__(self, near: Tensor) -> None:
        self.near = near

    def __repr__(self) -> str:
        return f"Far({self.near})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        with torch.no_grad():
            copy = self.clone()
        copy.requires_grad_(self.requires_grad)
        copy._is_param = isinstance(self, nn.Parameter)  # type: ignore[attr-defined]
        memo[id(self)] = copy
        return copy

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        return torch.tensor(data, dtype=dtype or self.dtype, device=FAR)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Elsewhere().__torch_dispatch__(func, types, args, kwargs)


class Generator(torch.Generator):
    """A generator that may claim to be far away."""

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        return super().__new__(cls, "cpu")

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.claimed = torch.device(device)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.claimed


class Elsewhere(TorchDispatchMode):
    """Lets `Far` tensors be computed with, and nothing else that CUDA would not."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves, form = tree_flatten((args, kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        wanted = (kwargs or {}).get("device")
        far = any(isinstance(leaf, Far) for leaf in tensors) if wanted is None else torch.device(wanted) == FAR
        self._refuse(func, name, tensors)
        self._note(name, tensors, far)
        known = {id(leaf.near): leaf for leaf in tensors if isinstance(leaf, Far)}
        args, kwargs = tree_unflatten([_near(leaf) for leaf in leaves], form)
        out = func(*args, **kwargs)
        return tree_map(lambda value: known[id(value)] if id(value) in known else _placed(value, far), out)

    def _refuse(self, func: Any, name: str, tensors: list[Tensor]) -> None:
        sides = {isinstance(leaf, Far) for leaf in tensors if isinstance(leaf, Far) or leaf.ndim > 0}
        if len(sides) > 1 and name not in ("copy_", "_to_copy"):
            raise AssertionError(f"{func}: tensors of both devices, {[tuple(leaf.shape) for leaf in tensors]}")

    def _note(self, name: str, tensors: list[Tensor], far: bool) -> None:
        from_far = any(isinstance(leaf, Far) for leaf in tensors)
        moved = name == "_to_copy" and bool(tensors) and from_far != far
        moved |= name == "copy_" and len({isinstance(leaf, Far) for leaf in tensors}) > 1
        masked = name in ("index", "index_put", "index_put_") and any(leaf.dtype == torch.bool for leaf in tensors[1:])
        if (from_far and (name in WAITING or masked)) or moved:
            self.waits.append(name)


def _near(leaf: Any) -> Any:
    if isinstance(leaf, Far):
        return leaf.near
    return torch.device("cpu") if isinstance(leaf, torch.device) and leaf == FAR else leaf


def _placed(value: Any, far: bool) -> Any:
    return Far(value) if far and isinstance(value, Tensor) else value


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """Compute on the far device, its generators and autocast included; yields what the host waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", Generator)
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, partial(_tensor, getattr(torch, name)))
        for name in ("rand", "randn", "randint", "randperm"):
            patch.setattr(torch, name, partial(_drawn, getattr(torch, name)))
        patch.setattr(torch, "autocast", _autocast)
        patch.setattr(torch, "is_autocast_enabled", lambda device: False)
        # `module.double()` makes new parameters: what is written into a far one's data does not reach its near tensor
        patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        with Elsewhere() as watched:
            yield watched


def _drawn(draw: Callable[..., Tensor], *size: Any, generator: Any = None, device: Any = "cpu", **more: Any) -> Tensor:
    """Draw as PyTorch does, which refuses a generator of another device; the dispatcher is not told of ours."""
    claimed = torch.device("cpu") if generator is None else generator.device
    assert claimed == torch.device(device), f"a generator on {claimed} cannot draw on {device}"
    return draw(*size, generator=generator, device=device, **more)


def _tensor(make: Callable[..., Tensor], data: Any, *, device: Any = None, **others: Any) -> Tensor:
    """Make a tensor of numbers, which PyTorch does without asking the dispatcher."""
    made = make(data, **others)
    return made if device is None else made.to(device)


def _autocast(device_type: str, *options: Any, enabled: bool = True, **others: Any) -> Any:
    assert device_type == FAR.type, f"autocast for {device_type}, and the images are elsewhere"
    return nullcontext()


def sent(batch: Batch) -> Batch:
    """Return the batch on the far device."""
    return Batch(*(None if part is None else Far(part) for part in batch))  # type: ignore[arg-type]


def sent_model(model: nn.Module) -> nn.Module:
    """Return a copy of the model on the far device."""
    model = deepcopy(model)
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(Far(value.detach()), value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = Far(value)
    return model


def near(value: Any) -> Any:
    """Return a tuple of tensors on the CPU."""
    return type(value)(*(part.near if isinstance(part, Far) else part for part in value))
