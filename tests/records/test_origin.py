"""Where a record comes from."""

import shlex
import sys

import pytest

from planish.records.origin import provenance


@pytest.mark.parametrize("program", ["/opt/bin/planish", "/opt/site-packages/planish/__main__.py"])
def test_the_command_can_be_pasted_into_a_shell(program: str, monkeypatch: pytest.MonkeyPatch):
    words = ["evaluate", "my models/net.py:build", "--data", "Bilder für 'Tests'", "--set", "model.name=$HOME;ls"]
    monkeypatch.setattr(sys, "argv", [program, *words])
    command = provenance("cpu")["command"]
    assert shlex.split(command) == ["planish", *words] and command.startswith(
        "planish evaluate 'my models/net.py:build'"
    )
