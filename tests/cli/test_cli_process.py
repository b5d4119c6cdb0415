"""The command line as a process of its own: what it imports, its exit code, its two streams."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = "{'torch', 'matplotlib', 'pydantic', 'rich', 'numpy', 'sklearn', 'jinja2', 'pyarrow', 'PIL'}"


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=110
    )


def test_help_imports_nothing_heavy(tmp_path: Path):
    script = (
        "import sys, planish\n"
        f"heavy = {HEAVY} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from planish.cli.main import app\n"
        "try:\n"
        "    app(['--help'])\n"
        "except SystemExit as done:\n"
        f"    heavy = {HEAVY} & set(sys.modules)\n"
        "    sys.exit(str(heavy) if heavy else done.code)\n"
    )
    result = python("-c", script, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: ")
    assert all(f"\n  {name} " in result.stdout for name in ("quickstart", "train", "evaluate", "report", "list"))


def test_wrong_usage_is_no_traceback(tmp_path: Path):
    result = python("-m", "planish", "evaluate", "--data", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "") and "Traceback" not in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_output_on_a_full_disk_is_no_mistake_of_planish(tmp_path: Path):
    """`planish ... > FILE` on a full disk once asked for a report of a mistake in planish."""
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "planish", "list", "attacks"], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE
        )
    told = b"planish: cannot write the output: No space left on device; free space\n"
    assert (result.returncode, result.stderr) == (2, told)


def test_evaluate_into_a_pipe(run_folder: Path, tmp_path: Path):
    judge = ("--data", "digits", "--radius", "0.1", "--limit", "10", "--attacks", "fgsm", "--device", "cpu", "--json")
    result = python("-m", "planish", "evaluate", str(run_folder), *judge, "--out", "judged", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["methods"][0]["evaluation"]["robust"]["images"] == 10
    assert document["provenance"]["command"].startswith("planish evaluate ")
