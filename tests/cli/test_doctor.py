"""Issue 24: planish doctor says what is installed, on what planish computes, and what is slow and why."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from planish.runs import doctor
from planish.runs.doctor import Gpu, Machine, slow, this_machine

Planish = Callable[..., Result]
GB = 10**9
GPU = Gpu("a GPU", 80 * GB, 79 * GB, True)
FAST = Machine("a processor", 8, 8, "", 1.0, 64 * GB, 60 * GB, "12.8", (GPU,), "AVX2", (), ())


def test_a_document(planish: Planish):
    result = planish("doctor", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["versions"]["torch"] == torch.__version__ and found["versions"]["python"] in sys.version
    assert found["versions"]["planish"] == "0.1.0" and found["extras"]["timm"].keys() == {"timm"}
    assert not {"test", "all", "integrations", "queue"} & found["extras"].keys()
    assert found["machine"]["threads"] == torch.get_num_threads() and found["machine"]["cores"] > 0
    assert [one for one in found["slow"] if "no accelerator" in one["why"]] or torch.version.cuda


def test_words(planish: Planish, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    printed = " ".join(planish("doctor").stdout.split())
    assert "slow: CUDA_LAUNCH_BLOCKING is on what to do: turn it off" in printed
    assert "slow: GLIBC_TUNABLES is set" in printed and f"torch {torch.__version__}" in printed


def test_a_fast_machine_has_nothing_to_tell(planish: Planish, monkeypatch: pytest.MonkeyPatch):
    assert slow(FAST) == []
    monkeypatch.setattr(doctor, "this_machine", lambda malloc: FAST)
    assert "nothing here makes planish slow" in planish("doctor").stdout


@pytest.mark.parametrize(
    ("changed", "why", "remedy"),
    [
        ({"gpus": ()}, "built for CUDA 12.8 and finds no GPU", "CUDA_VISIBLE_DEVICES"),
        ({"gpus": (), "cuda": ""}, "PyTorch is built for CPUs", "build for it"),
        ({"gpus": (replace(GPU, free=GB),)}, "a GPU has 1.0 of 80.0 GB free", "cuda:N"),
        ({"threads": 64}, "64 threads, and there are 8 cores", "OMP_NUM_THREADS=8"),
        ({"cores": 1.5}, "8 threads, and there are 1.5 cores", "OMP_NUM_THREADS=1"),
        ({"load": 30.0}, "30.0 processes want a core", "say little"),
        ({"free": GB}, "1.0 GB of memory are free", "--batch-size"),
        ({"debugging": ("x",)}, "x is on", "turn it off"),
        ({"vector": "DEFAULT"}, "none of the processor's vector instructions", "ATEN_CPU_CAPABILITY"),
        ({"malloc": ("GLIBC_TUNABLES",)}, "GLIBC_TUNABLES is set", "unset it"),
    ],
)
def test_what_is_slow(changed: dict[str, object], why: str, remedy: str):
    (one,) = slow(replace(FAST, **changed))  # type: ignore[arg-type]
    assert why in one.why and remedy in one.remedy


def test_few_threads_matter_without_a_gpu():
    alone = replace(FAST, threads=1, omp="1")
    assert slow(alone) == []
    told = [one for one in slow(replace(alone, gpus=(), cuda="")) if "1 of 8 cores" in one.why]
    assert "because OMP_NUM_THREADS is 1" in told[0].why


def test_a_container_s_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "CGROUP", tmp_path / "cpu.max")
    whole = this_machine().cores
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert this_machine().cores == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert this_machine().cores == whole >= 1


def test_debugging_is_seen():
    assert "torch.autograd's anomaly mode" not in this_machine().debugging
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        assert "torch.autograd's anomaly mode" in this_machine().debugging


def test_extras_are_read_from_the_package_s_own_statement(monkeypatch: pytest.MonkeyPatch):
    lines = [
        "torch>=2.4",
        'nothing-of-this-name>=1; extra == "dream"',
        "numpy>=1; python_version<'9' and extra == 'half'",
    ]
    monkeypatch.setattr(doctor, "requires", lambda package: [*lines, 'pytest>=8; extra == "test"'])
    needed, extras = doctor.installed()
    assert needed.keys() == {"planish", "torch"}
    assert extras["dream"] == {"nothing-of-this-name": None} and extras["half"]["numpy"] and "test" not in extras
