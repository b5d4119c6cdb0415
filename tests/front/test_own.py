"""An attack, a method and a check of one's own, by the file that they are in."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planish.audit.auditor import own_checks
from planish.cli.main import app
from planish.core.errors import BadInput
from planish.records.evaluation import load
from planish.registry import make
from planish.runs.config import experiment_from, parsed

OWN = '''
"""Things of one's own."""

from __future__ import annotations

from dataclasses import dataclass

from planish.attacks import Attack, DistanceAttack, PGD, Recipe
from planish.attacks.deepfool import DeepFool
from planish.audit.check import Seen, check
from planish.methods import FGSMAT


@dataclass(frozen=True)
class Mine(Recipe):
    """My attack."""

    steps: int = 3
    restarts: int = 1

    def parts(self, classes: int) -> Attack:
        return PGD(self.steps, self.restarts)


@dataclass(frozen=True)
class Far(DeepFool):
    """My distance attack."""


@dataclass(frozen=True)
class Train(FGSMAT):
    """My method."""

    more: float = 0.5


@check(rows=(99,), warn_at=1000.0)
def counted(evidence):
    """How many images there are."""
    return Seen(float(len(evidence.images.x)), 0.0, "So many images.")


nothing = 3
'''


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "some folder" / "own-1.py"
    path.parent.mkdir()
    path.write_text(OWN)
    return str(path)


def command(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, words)
    return result.exit_code, result.output


TRAIN = (
    "--set",
    "data.limit=64",
    "--set",
    "settings.epochs=1",
    "--set",
    "settings.batch_size=32",
    "--set",
    "model.width=4",
    "--device",
    "cpu",
    "--quiet",
)


def test_on_the_command_line(own: str, tmp_path: Path):
    """Trained by a method, attacked, measured and audited: each of one's own; then the folder is opened again."""
    out = str(tmp_path / "run")
    train = ("train", "--method", f"{own}:Train", "--set", "method.more=0.25", *TRAIN, "--out", out)
    code, text = command(*train)
    assert code == 0, text
    assert f'name = "{own}:Train"' in (tmp_path / "run" / "config.toml").read_text()
    judge = ("--data", "digits", "--limit", "20", "--device", "cpu", "--quiet", "--json")
    code, text = command("evaluate", out, "--radius", "0.1", "--attacks", f"{own}:Mine-2-2,fgsm", *judge, "--out", out)
    assert code == 0 and load(tmp_path / "run" / "evaluation.npz").names == ("Mine-2-2", "fgsm")
    code, text = command("distances", out, "--attacks", f"{own}:Far", *judge, "--out", out)
    assert code == 0 and "Far" in text
    code, text = command("audit", out, "--radius", "0.1", "--checks", f"{own}:counted", *judge, "--out", f"{out}-audit")
    assert code in (0, 1)
    finding = json.loads(text)["findings"][-1]
    assert finding["check"] == "counted" and finding["statistic"] == 20 and finding["verdict"] == "pass"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py:Mine", "cannot import 'none.py' for attack 'none.py:Mine': no file none.py"),
        ("{own}:None", "'{own}' has no function or class 'None'"),
        ("{own}:nothing", "'{own}' has no function or class 'nothing'"),
        ("{own}:Mine-1-2-3", "'{own}:Mine-1-2-3' has more numbers than 'Mine-1-2-3' takes"),
        ("{own}:Mine-0", "steps must be at least 1, got 0"),
    ],
)
def test_what_is_no_attack(name: str, message: str, own: str):
    with pytest.raises(BadInput) as raised:
        make("attacks", name.format(own=own), {}).assembled(3)
    assert str(raised.value).startswith(message.format(own=own))


def test_a_check_must_be_one(own: str):
    with pytest.raises(BadInput, match=r"Mine' is no check: decorate it with planish\.audit\.check\.check"):
        own_checks([f"{own}:Mine"])


def test_in_a_toml(own: str):
    experiment = experiment_from({"method": {"name": f"{own}:Train", "more": 0.75}})
    assert experiment.training_method.more == 0.75  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="has no key 'less'"):
        experiment_from({"method": {"name": f"{own}:Train", "less": 1}})


def test_a_folder_s_configuration_runs_no_code(tmp_path: Path):
    """It is compared with what is asked for; the file that it names is not even looked for."""
    assert parsed({"method": {"name": "nowhere.py:Method"}}).method.name == "nowhere.py:Method"
