"""Two commands do not work in one folder at once."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from planish.core.errors import BadInput
from planish.storage.files import LOCK, alone

HOLDER = """
import sys, time
from pathlib import Path
from planish.storage.files import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANISH_HOME", str(tmp_path / "home"))


def test_a_second_one_is_turned_away_and_a_killed_one_leaves_nothing_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        monkeypatch.chdir(tmp_path)
        for name in (folder, Path("run"), tmp_path / "elsewhere" / ".." / "run"):
            with pytest.raises(BadInput, match=rf"\(process {holder.pid} on .*\) is at work in"), alone(name):
                pass
        with alone(tmp_path / "other"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait(20)
        with alone(folder):
            pass
    assert not (folder / LOCK).exists()


def test_another_home_is_kept_out_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The lock lies in the folder: another user, or another machine on the same disk, has another home."""
    with alone(tmp_path / "run"):
        monkeypatch.setenv("PLANISH_HOME", str(tmp_path / "other home"))
        with pytest.raises(BadInput, match="is at work in"), alone(tmp_path / "run"):
            pass
    assert not (tmp_path / "run").exists() and not (tmp_path / "home").exists()


def test_an_error_inside_unlocks(tmp_path: Path):
    with pytest.raises(KeyError), alone(tmp_path):
        raise KeyError("inside")
    with alone(tmp_path):
        pass


def test_where_no_file_can_be_made_nothing_is_locked(tmp_path: Path):
    (tmp_path / "file").touch()
    with alone(tmp_path / "file"), alone(tmp_path / "file" / "deeper"):
        pass
    assert (tmp_path / "file").is_file()


def test_a_file_system_without_locks_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refused(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    with alone(tmp_path):
        pass
    assert f"no lock on {tmp_path} (No locks available): start nothing else in it" in caplog.text


def test_the_command_line_says_so_and_touches_nothing(tmp_path: Path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "planish", "train", "--data", "digits", "--out", str(out), "--quiet"]
    with alone(out):
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert [path.name for path in out.iterdir()] == [LOCK]
    assert (done.returncode, done.stdout) == (2, "") and not out.exists()
    assert "is at work in" in done.stderr and "Traceback" not in done.stderr
