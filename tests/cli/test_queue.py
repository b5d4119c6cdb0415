"""The SLURM lines of docs/shards.md through submitit's local executor: a job for each task of the array, and merge."""

import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from planish.records.evaluation import load

PAGE = Path(__file__).parents[2] / "docs" / "shards.md"
MODEL = """
import torch
def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


def lines() -> tuple[str, str]:
    """Return the script of a task of the array, and the command that follows when all are done."""
    script, queued = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)[:2]
    assert "#SBATCH --job-name=judge --array=1-16" in script and "$SLURM_ARRAY_TASK_ID" in script
    *_, merge = shlex.split(queued)
    return script.replace("/16", "/2").replace("8/255", "0.1"), merge


@pytest.mark.packages("submitit")
def test_an_array_of_shards_and_its_merge(planish: Callable[..., Result], tmp_path: Path):
    import submitit

    (tmp_path / "own.py").write_text(MODEL)
    script, merge = lines()
    script = script.replace("--attacks autoattack", "--attacks fgsm --limit 20 --device cpu")
    (tmp_path / "planish").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m planish "$@"\n')
    (tmp_path / "planish").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    given = {**os.environ, "RUN": "own.py:build", "DATA": "digits", "PATH": path, "OMP_NUM_THREADS": "1"}
    executor = submitit.LocalExecutor(folder="queue")
    executor.update_parameters(timeout_min=5)
    tasks = [{**given, "SLURM_ARRAY_TASK_ID": str(number)} for number in (1, 2)]
    jobs = [executor.submit(submitit.helpers.CommandFunction(["bash", "-c", script], env=task)) for task in tasks]
    assert all("shard " in job.result() for job in jobs)
    words = shlex.split(merge)
    folders = [word for pattern in words if "*" in pattern for word in sorted(map(str, Path().glob(pattern)))]
    assert words[:2] == ["planish", "merge"] and folders == ["judged/shard-1", "judged/shard-2"]
    done = planish("merge", *folders, *words[3:])
    assert done.exit_code == 0, done.output
    on = ("--data", "digits", "--radius", "0.1", "--limit", "20", "--device", "cpu", "--attacks", "fgsm")
    planish("evaluate", "own.py:build", *on, "--out", "whole")
    one, other = load("judged/all/evaluation.npz"), load("whole/evaluation.npz")
    assert one.names == other.names == ("fgsm",)
    np.testing.assert_array_equal(one.column("fgsm").broken, other.column("fgsm").broken)
