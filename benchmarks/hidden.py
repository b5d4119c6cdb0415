"""A network of benchmarks/suite_models.sh behind what hides their gradients: "benchmarks/hidden.py:off_the_grid".

Both answer exactly as the network does, so that the best known of them is the best known of the network. RUNS
(runs/suite) in the environment says where it is.
"""

import os
import sys
from pathlib import Path

from torch import nn

from planish.runs.judge import load_model

sys.path.append(str(Path(__file__).parents[1] / "tests" / "audit"))
import masks  # beside the audit's zoo, which hides its networks behind them


def network() -> nn.Module:
    """Return the network that is hidden."""
    return load_model(str(Path(os.environ.get("RUNS", "runs/suite")) / "pgd-7")).model


def confident() -> nn.Module:
    """No gradient where the network is sure: by more than 1 in its logits."""
    return masks.Confident(network()).eval()


def off_the_grid() -> nn.Module:
    """The gradient is right at images of 8 bits, as clean ones are, and turned round at others."""
    return masks.Before(network(), masks.altered(masks.off_the_grid)).eval()
