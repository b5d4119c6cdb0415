"""Types `planish` commands, each into a process that begins where importing PyTorch and matplotlib ends: much sooner.

As a script it is the server: each line of standard input is a JSON list of the words of a command; the answer is its
exit code and all that it printed.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Self


class Typist:
    """A user at work in one folder, with an environment and a Python of their own."""

    def __init__(self, python: Path, home: Path, user: dict[str, str]) -> None:
        pipe = subprocess.PIPE
        self.server = subprocess.Popen([python, __file__], cwd=home, env=user, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.communicate()

    def type(self, words: list[str]) -> tuple[int, str]:
        """Return the exit code of a command, and all that it printed."""
        assert self.server.stdin and self.server.stdout
        print(json.dumps(words), file=self.server.stdin, flush=True)
        code, printed = json.loads(self.server.stdout.readline())
        return code, printed


def become(words: list[str], out: IO[bytes]) -> None:
    """Be the command from here on."""
    sys.argv = words
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(out.fileno(), number)
    from planish.cli.main import run

    run()


def serve() -> None:
    import matplotlib.backends.backend_agg  # noqa: F401
    import torch  # noqa: F401

    gc.freeze()  # what is shared with the commands stays unwritten
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out:
            if (child := os.fork()) == 0:
                become(json.loads(line), out)
            _, status = os.waitpid(child, 0)
            out.seek(0)
            answer = os.waitstatus_to_exitcode(status), out.read().decode()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
