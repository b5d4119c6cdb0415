"""What a command would do: every input tried, the whole configuration told, and nothing written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from planish.attacks.suites import Suite
from planish.audit.auditor import checks, own_checks, plan_of
from planish.core.arguments import check_logits
from planish.core.modes import Counted
from planish.core.threat import ThreatModel
from planish.data.images import refuse
from planish.evaluation.naming import distance_attacks
from planish.evaluation.unions import ThreatUnion
from planish.records.origin import attack_text, describe_attack
from planish.runs.config import Experiment, to_toml
from planish.runs.judge import EvaluationConfig, LoadedModel, set_to_judge, surrogates_of
from planish.runs.train import batches_of, prepare

Tree = dict[str, Any]


def train(experiment: Experiment, device: torch.device | str) -> str:
    """Return a training's whole configuration as TOML, once its images and model were tried. Raises BadInput."""
    on_corrupt = set[str]().add if experiment.data.skip_corrupt else refuse
    batches_of(experiment, prepare(experiment, device, on_corrupt), device, on_corrupt)
    return to_toml(experiment)


def evaluate(judged: LoadedModel, task: EvaluationConfig, device: torch.device | str, built_by: str | None) -> Tree:
    """Return an evaluation's configuration, its attacks with all their options. Raises BadInput as it would."""
    image = set_to_judge(task, judged.about)[0].to(device).select(slice(0, 1))
    others = surrogates_of(judged, task, image, built_by)

    def named(classes: int) -> Mapping[str, Any]:
        found = ThreatUnion(task.threats).attacks([*dict.fromkeys(task.attacks)], classes, others)
        return {name: one if isinstance(one, Suite) else one.assembled(classes) for name, one in found.items()}

    return _judged(judged, task, device, named)


def distances(judged: LoadedModel, task: EvaluationConfig, device: torch.device | str) -> Tree:
    """Return the configuration of a measurement of distances. Raises BadInput as it would."""

    def named(classes: int) -> Mapping[str, Any]:
        return distance_attacks([*dict.fromkeys(task.attacks)], classes, norm=task.threat.name)

    return _judged(judged, task, device, named)


def audit(
    judged: LoadedModel, task: EvaluationConfig, device: torch.device | str, budget: str, own: Sequence[str]
) -> Tree:
    """Return an audit's configuration: its budget and its checks. Raises BadInput as it would."""
    plan = asdict(plan_of(budget))
    known = [*checks(), *own_checks(own)]
    return {**_judged(judged, task, device, lambda classes: {}), "checks": known, "budget": plan}


def _threats(threats: Sequence[ThreatModel]) -> Tree:
    """Return the threat as a table, of several a list of texts as `--threat` takes them."""
    if len(threats) == 1:
        return {"threat": threats[0].facts}
    return {"threats": [f"{one.name}:{one.radius!r}" for one in threats]}


def _judged(
    judged: LoadedModel,
    task: EvaluationConfig,
    device: torch.device | str,
    named: Callable[[int], Mapping[str, Any]],
) -> Tree:
    images, data, notes = set_to_judge(task, judged.about)
    classes = check_logits(Counted(judged.model), images.to(device).select(slice(0, 2))).shape[1]
    own = {name: value for name, value in asdict(task).items() if name not in ("threat", "also", "attacks")}
    known = {"name": judged.name, **own, "device": str(device), "notes": [*judged.notes, *notes]}
    attacks = {name: attack_text(describe_attack(attack)) for name, attack in named(classes).items()}
    return {
        **known,
        "images": {"name": data["name"], "count": data["images"], "shape": [*images.shape[1:]], "classes": classes},
        **_threats(task.threats),
        "attacks": attacks,
    }
