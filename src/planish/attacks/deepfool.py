"""DeepFool: step after step onto the nearest of the linearised decision boundaries."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from planish.attacks import DistanceAttack
from planish.core.batch import Batch, per_image
from planish.core.errors import BadInput, at_least
from planish.core.losses import likely_classes
from planish.core.modes import attacked
from planish.core.threat import ThreatModel
from planish.search.ascent import Nearest
from planish.search.nearest import NearestSearch
from planish.search.objectives import logit_gradients

NORMS = ("Linf", "L2")


@dataclass(frozen=True)
class DeepFool(DistanceAttack):
    """DeepFool: steps to the nearest linearised boundary (Moosavi-Dezfooli et al. 2016). deepfool-STEPS-CANDIDATES.

    steps: at most so many, at least 1. A step costs an image `candidates` backwards and two forwards: the second one
        judges what would be returned and spares the images that have arrived their backwards.
    candidates: classes that are looked at, those of the largest clean logits with the true one among them, at least 2.
    overshoot: how much farther than the boundary the returned image lies, as a share of the way, at least 0.

    With the gap f_c = z_y - z_c and its slope w_c = grad (z_c - z_y) at x + r, the nearest class is
    argmin_c f_c / ||w_c||_dual (eq. 8 and 11), and the step to its boundary that distance times the steepest unit step
    along w_c (eq. 9 and 12). Steps add up to r; an image stops at its first misclassified x + (1 + overshoot) r. A fast
    upper bound of the distance, not the nearest point of the boundary.

    Differs: the paper overshoots after x + r itself is misclassified; here it may be before, and never later. The
    authors' code steps on from x + (1 + overshoot) r and makes each step longer by 1e-4. Both ignore the box; here
    x + r and x + (1 + overshoot) r are clipped to it: the next step makes up for what a cut has lost.
    """

    steps: int = 50
    candidates: int = 10
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        if not self.candidates >= 2:
            raise BadInput(f"candidates must be at least 2, the true class being one, got {self.candidates}")
        at_least(0, overshoot=self.overshoot)

    def distances(self, model: nn.Module, batch: Batch, threat: ThreatModel, *, generator: Generator) -> Nearest:
        """Return the first adversarial image on each one's way; nothing is drawn. Raises BadInput in other norms."""
        if threat.name not in NORMS:
            raise BadInput(f"DeepFool knows the norms {' and '.join(NORMS)}, not {threat.name}; use fab or closest")
        with attacked(model):
            search = NearestSearch.begun(model, batch, threat)
            batch, rows = search.batch, search.unfinished()
            wrong = likely_classes(batch.clean_logits, batch.labels)[:, : self.candidates - 1]
            classes, reached = torch.cat([batch.labels[:, None], wrong], 1), batch.x.clone()
            for step in range(1, self.steps + 1):
                if len(rows) == 0:
                    break
                move, moves = _to_boundary(model, reached[rows], classes[rows], threat)
                search.found.passes[rows] += 1 + classes.shape[1]
                rows, move = rows[moves], move[moves]
                if len(rows) == 0:
                    break
                reached[rows] = (reached[rows] + move).clamp(threat.low, threat.high)
                x_adv = reached[rows] + self.overshoot * (reached[rows] - batch.x[rows])
                rows = rows[~search.tried(rows, x_adv.clamp(threat.low, threat.high), step)]
        return search.found


def _to_boundary(model: nn.Module, x_adv: Tensor, classes: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """Return the step to the nearest linearised boundary, (n, ...), and for which images there is one, (n,)."""
    logits, gradients = logit_gradients(model, x_adv, classes)
    height = logits.gather(1, classes)
    slope = gradients[:, 1:] - gradients[:, :1]
    steepness = threat.dual_norm(slope.flatten(0, 1)).view(len(x_adv), -1)
    distance = (height[:, :1] - height[:, 1:]) / steepness
    distance = torch.where((steepness > 0) & steepness.isfinite() & distance.isfinite(), distance, torch.inf)
    shortest, nearest = distance.min(1)
    along = threat.steepest(slope[torch.arange(len(x_adv), device=x_adv.device), nearest])
    return (along * per_image(shortest, x_adv)).to(x_adv.dtype), shortest.isfinite()


COMPONENTS = {"deepfool": DeepFool}
