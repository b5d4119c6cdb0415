"""What saved adversarial images turned out to be."""

from dataclasses import dataclass
from typing import Any

from planish.records.statistics import Estimate, accuracy


@dataclass(frozen=True)
class Verified:
    """What saved images turned out to be, judged afresh.

    clean, robust: shares classified correctly. infeasible: images outside the ball or the box, which break nothing.
    distance: the largest, a norm in pixels of [0, 1]; of several threats in the first one's.
    """

    clean: Estimate
    robust: Estimate
    infeasible: int
    distance: float

    def document(self) -> dict[str, Any]:
        """Return it as one JSON-able document."""
        shares = {"clean": accuracy(self.clean), "robust": accuracy(self.robust)}
        return {**shares, "infeasible": self.infeasible, "largest_distance": self.distance}
