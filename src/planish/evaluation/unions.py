"""Several threats at once: an image is robust if it is robust in each; what one breaks does not go on to the next.

The record is one: its columns are named "NORM ATTACK", and each says in which threat it searched.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from planish.attacks import Attack
from planish.attacks.suites import Suite
from planish.attacks.transfer import Surrogate
from planish.core.arguments import threat_of
from planish.core.errors import BadInput
from planish.core.threat import ThreatModel
from planish.evaluation.naming import attacks_of

Threats = ThreatModel | str | Sequence[ThreatModel | str]
"""One threat, or a list of several."""


class ThreatUnion(NamedTuple):
    """One threat or several, each norm once, in the order in which they are tried."""

    threats: tuple[ThreatModel, ...]

    @property
    def first(self) -> ThreatModel:
        """The first threat."""
        return self.threats[0]

    @property
    def low(self) -> float:
        """The least pixel of the box that all have."""
        return self.first.low

    @property
    def high(self) -> float:
        """The largest pixel of the box that all have."""
        return self.first.high

    def check(self, x: Tensor) -> None:
        """Raise BadInput for images (N, ...) that do not fit one of the threats."""
        for one in self.threats:
            one.check(x)

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of its threat: norm and radius, of several those of each."""
        facts = [one.facts for one in self.threats]
        return facts[0] if len(facts) == 1 else {"norm": "union", "radius": None, "threats": facts}

    def among(self, indices: Tensor) -> "ThreatUnion":
        """Return the threats of a test set of these images, as `ThreatModel.among` does. Raises BadInput."""
        return ThreatUnion(tuple(one.among(indices) for one in self.threats))

    def of(self, indices: Tensor) -> "ThreatUnion":
        """Return the threats of some images of the set, as `ThreatModel.of` does."""
        return ThreatUnion(tuple(one.of(indices) for one in self.threats))

    def at(self, column: str) -> ThreatModel:
        """Return the threat in which the column of this name searches."""
        return next((one for one in self.threats[1:] if column.startswith(f"{one.name} ")), self.first)

    def facts_at(self, column: str) -> dict[str, Any]:
        """Return what the column's meta says of its threat: nothing, where there is but one."""
        return {} if len(self.threats) == 1 else {"threat": ThreatUnion((self.at(column),)).facts}

    def attacks(self, attacks: object, classes: int, surrogates: Sequence[Surrogate]) -> dict[str, Attack | Suite]:
        """Return the attacks by name, those of several threats with each one's norm before it. Raises BadInput."""
        each = {one.name: attacks_of(attacks, classes, norm=one.name, surrogates=surrogates) for one in self.threats}
        if len(each) == 1:
            return each[self.first.name]
        return {f"{norm} {name}": attack for norm, own in each.items() for name, attack in own.items()}


def threats_of(threat: object) -> ThreatUnion:
    """Return one threat, or those of a list. Raises BadInput for an empty list and for a norm given twice."""
    if not isinstance(threat, list):
        return ThreatUnion((threat_of(threat, own_radii=True),))
    found = ThreatUnion(tuple(threat_of(one, own_radii=True) for one in threat))
    norms = [one.name for one in found.threats]
    if not norms:
        raise BadInput('a list of threats needs at least one, such as ["Linf:8/255", "L2:0.5"]')
    if len(set(norms)) < len(norms):
        raise BadInput(f"each norm once: {', '.join(norms)} are given; of two radii the larger holds the smaller")
    if len({(one.low, one.high) for one in found.threats}) > 1:
        raise BadInput("the threats must have one box: give all of them the same low and high")
    return found
