"""A model that attacks by gradients are led astray by."""

from torch import Tensor, nn


class Misleading(nn.Module):
    """Right logits, and gradients that point the wrong way."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return logits.detach() + 1 * (logits.detach() - logits)
