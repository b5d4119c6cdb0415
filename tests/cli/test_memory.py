"""The command line keeps freed memory: in processes of their own, since an allocator's options stay."""

import platform
import subprocess
import sys

import pytest

from planish.cli.memory import OWN_CHOICE

PASSES = """
import resource, sys
import torch
from torch import nn
from planish.cli.memory import keep_freed

kept = keep_freed() if sys.argv[1] == "keep" else None
torch.set_num_threads(1)
layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
model, x = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 1024, 2)), torch.rand(64, 3, 32, 32)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(x).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(kept, sum([faults() for _ in range(15)][-5:]))
"""


def passes(word: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """What `keep_freed` returned, and the page faults of five training passes after ten others."""
    for name in OWN_CHOICE:
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", PASSES, word], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_pass_faults_next_to_nothing_in(monkeypatch: pytest.MonkeyPatch):
    """Left alone, glibc 2.36 faults in some 30,000 pages here."""
    kept, faults = passes("keep", monkeypatch)
    _, left_alone = passes("leave", monkeypatch)
    assert kept == "True" and faults < 2000 and faults <= left_alone


@pytest.mark.parametrize("name", OWN_CHOICE)
def test_the_environment_s_own_choice_stands(name: str, monkeypatch: pytest.MonkeyPatch):
    from planish.cli.memory import keep_freed

    monkeypatch.setenv(name, "1")
    assert keep_freed() is False


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch):
    from planish.cli import memory

    for name in OWN_CHOICE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed() is False
