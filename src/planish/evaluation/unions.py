"""Several threats at once: an image is robust if it is robust in each; what one breaks does not go on to the next.

The record is one: its columns are named "NORM ATTACK", and each says in which threat it searched.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from planish.attacks import Attack
from planish.attacks.suites import Suite
from planish.attacks.transfer import Surrogate
from planish.core.arguments import threat_of
from planish.core.errors import BadInput
from planish.core.threat import ThreatModel
from planish.evaluation.naming import attacks_of

Threats = ThreatModel | str | Sequence[ThreatModel | str]
"""One threat, or a list of several."""


def threats_of(threat: object) -> tuple[ThreatModel, ...]:
    """Return one threat, or those of a list, in order. Raises BadInput for an empty list and for a norm given twice."""
    if not isinstance(threat, list):
        return (threat_of(threat),)
    found = tuple(threat_of(one) for one in threat)
    norms = [one.name for one in found]
    if not found:
        raise BadInput('a list of threats needs at least one, such as ["Linf:8/255", "L2:0.5"]')
    if len(set(norms)) < len(norms):
        raise BadInput(f"each norm once: {', '.join(norms)} are given; of two radii the larger holds the smaller")
    if len({(one.low, one.high) for one in found}) > 1:
        raise BadInput("the threats must have one box: give all of them the same low and high")
    return found


def attacks_in(
    threats: Sequence[ThreatModel], attacks: object, classes: int, surrogates: Sequence[Surrogate]
) -> dict[str, Attack | Suite]:
    """Return the attacks by name, those of each of several threats with its norm before the name. Raises BadInput."""
    each = {one.name: attacks_of(attacks, classes, norm=one.name, surrogates=surrogates) for one in threats}
    if len(threats) == 1:
        return each[threats[0].name]
    return {f"{norm} {name}": attack for norm, own in each.items() for name, attack in own.items()}


def threat_at(threats: Sequence[ThreatModel], column: str) -> ThreatModel:
    """Return the threat in which the column of this name searches."""
    return next((one for one in threats[1:] if column.startswith(f"{one.name} ")), threats[0])


def threat_facts(threats: Sequence[ThreatModel]) -> dict[str, Any]:
    """Return what a record says of its threat: norm and radius, of a union those of its parts."""
    facts = [{"norm": one.name, "radius": one.radius} for one in threats]
    return facts[0] if len(facts) == 1 else {"norm": "union", "radius": None, "threats": facts}


def column_facts(threats: Sequence[ThreatModel], threat: ThreatModel) -> Mapping[str, Any]:
    """Return what a column's meta says of its threat: nothing, where there is but one."""
    return {} if len(threats) == 1 else {"threat": threat_facts((threat,))}
