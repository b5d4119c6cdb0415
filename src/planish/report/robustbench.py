"""An evaluation in the fields of a submission to RobustBench: a file of its `model_info`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planish.attacks.suites.autoattack import AutoAttack
from planish.core.errors import BadInput
from planish.core.words import radius_text
from planish.records.evaluation import Evaluation
from planish.records.statistics import Estimate
from planish.storage.files import write_json

YOURS = ("link", "name", "authors", "venue", "architecture", "additional_data")
"""What a record does not know: left empty, for the authors to fill in."""
AUTOATTACK = {f"autoattack/{stage.name}" for stage in AutoAttack.stages}


def model_info(evaluation: Evaluation) -> dict[str, Any]:
    """Return the fields of RobustBench's model_info/DATASET/NORM/NAME.json, accuracies in percent as texts.

    "autoattack_acc" is there where `autoattack` was run as a whole, and "external" where other attacks left less.
    Raises BadInput for a record without any attack.
    """
    if not evaluation.columns:
        raise BadInput("a submission needs an attack, and this record has none: evaluate with --attacks autoattack")
    robust = _percent(evaluation.robust_accuracy())
    facts = {"number_forward_passes": "1", "dataset": evaluation.dataset, "threat_model": evaluation.norm}
    facts |= {"eps": radius_text(evaluation.radius), "clean_acc": _percent(evaluation.clean_accuracy())}
    facts |= {"reported": robust, "n_examples": str(len(evaluation.labels))}
    if AUTOATTACK.issubset(evaluation.names):
        facts["autoattack_acc"] = _percent(evaluation.accuracy_after("autoattack"))
    if facts.get("autoattack_acc") != robust:
        facts["external"] = robust
    return {**dict.fromkeys(YOURS, ""), **facts}


def write_model_info(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write the fields of the only evaluation as JSON. Raises BadInput, for several too."""
    if len(evaluations) != 1:
        raise BadInput(f"a file has RobustBench's fields of one model; name one of the {len(evaluations)} folders")
    write_json(model_info(evaluations[0]), path)


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.2f}"
