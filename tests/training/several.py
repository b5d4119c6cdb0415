"""Processes for tests: a function of a test file, called in each of a group that exchanges tensors by gloo."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from planish.training.processes import Group, joined

PATIENCE = 0.5
"""Minutes after which a process that waits for another gives up."""
Work = Callable[..., Any]


def together(work: Work, count: int, folder: Path, *arguments: Any) -> list[Any]:
    """Return what work(group, *arguments) returns in each of so many new processes: tensors, numbers and containers."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_in_group, (work, count, port, folder, arguments), count)
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(count)]


def _in_group(number: int, work: Work, count: int, port: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    with joined(patience=PATIENCE) as group:
        assert isinstance(group, Group) and group.size == count
        torch.save(work(group, *arguments), folder / f"{number}.pt")
    os._exit(0)  # Python's own end can abort in a thread of gloo
