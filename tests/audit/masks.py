"""What makes a network only seem robust: one small wrapper for each trick, round a network that it leaves as it is."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad, unfold


class Wrapped(nn.Module):
    """A network behind something that happens to its images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class Before(Wrapped):
    """A function of the images before the network."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(network)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.change(x))


class After(Before):
    """A function of the logits after it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.network(x))


class _Altered(torch.autograd.Function):
    """The identity, with a backward of its own."""

    @staticmethod
    def forward(ctx, x: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.change = change
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.change(gradient, x), None


def altered(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the identity whose gradient becomes change(gradient, x)."""
    return lambda x: _Altered.apply(x, change)


def turned(gradient: Tensor, x: Tensor, degrees: float = 25.0) -> Tensor:
    """Turn each gradient by so many degrees towards a fixed direction at right angles to it."""
    flat = gradient.flatten(1)
    fixed = torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(1)).to(flat)
    length = flat.norm(dim=1, keepdim=True)
    unit = flat / length.clamp(min=1e-30)
    side = fixed - (unit @ fixed)[:, None] * unit
    angle = torch.tensor(degrees).deg2rad()
    new = length * (angle.cos() * unit + angle.sin() * side / side.norm(dim=1, keepdim=True))
    return new.view_as(gradient)


def noisy_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Add noise of five times the gradient's own length."""
    noise = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(2)).to(gradient)
    per = gradient.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
    return gradient + 5 * per.view(-1, 1, 1, 1) * noise


def checkered(gradient: Tensor, x: Tensor) -> Tensor:
    """Keep the gradient of every second pixel alone."""
    rows, columns = (torch.arange(size) for size in x.shape[-2:])
    return gradient * ((rows[:, None] + columns) % 2).to(gradient)


def only_inside(gradient: Tensor, x: Tensor) -> Tensor:
    """No gradient for pixels at the box's edge, as a clamp at inference leaves none."""
    return gradient * ((x > 0) & (x < 1))


def off_the_grid(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient is right at clean images, which lie on a grid of grey levels, and turned round elsewhere."""
    clean = ((255 * x).round() - 255 * x).abs().flatten(1).amax(1) < 1e-3
    return torch.where(clean.view(-1, 1, 1, 1), gradient, -gradient)


def thermometer(x: Tensor) -> Tensor:
    """Sixteen thresholds, and back to a shade (Buckman et al. 2018)."""
    return (x[..., None] > torch.arange(16) / 16).to(x).mean(-1)


def straight_through(x: Tensor) -> Tensor:
    """Eight levels, with the gradient of the identity: what attacks on rounding use themselves."""
    return x + ((7 * x).round() / 7 - x).detach()


def cosines(x: Tensor) -> Tensor:
    """The discrete cosine transform of 8x8 images, rounded to multiples of 0.5, and back, as in a JPEG file."""
    size = x.shape[-1]
    place = torch.arange(size) + 0.5
    basis = (torch.arange(size)[:, None] * place * torch.pi / size).cos() * (2 / size) ** 0.5
    basis[0] /= 2**0.5
    basis = basis.to(x)
    return basis.T @ ((2 * (basis @ x @ basis.T)).round() / 2) @ basis


def median(x: Tensor) -> Tensor:
    """The median of 3x3 pixels."""
    return unfold(pad(x, (1, 1, 1, 1), "replicate"), 3).unflatten(1, (x.shape[1], 9)).median(2).values.view_as(x)


def by_content(x: Tensor) -> Tensor:
    """Noise that follows from the image's own pixels: the same again, and another for the smallest change."""
    keys = (x.detach().double().flatten(1) * 1e4).round().sum(1)
    phase = keys[:, None] * (1 + torch.arange(x[0].numel()))
    return x + 0.3 * (phase.sin().to(x)).view_as(x)


def translated(x: Tensor) -> Tensor:
    """Moved by at most one pixel, by chance."""
    down, right = (int(torch.randint(-1, 2, ())) for _ in range(2))
    return x.roll((down, right), (2, 3))


def dropped(x: Tensor) -> Tensor:
    """A third of the pixels is 0, by chance."""
    return x * (torch.rand_like(x) > 1 / 3)


def whitened(x: Tensor) -> Tensor:
    """The mean image of the batch is taken away."""
    return x - 0.5 * (x.mean(0, keepdim=True) - x.mean())


class Pruned(Wrapped):
    """Activations dropped by chance, the small ones most (stochastic activation pruning, Dhillon et al. 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.network:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                kept = torch.rand_like(x) < (2 * x / x.flatten(1).mean(1).view(-1, 1, 1, 1).clamp(min=1e-6)).clamp(0, 1)
                x = x * kept
        return x


class Voting(Wrapped):
    """What most of nine noisy copies are, the noise fixed: the class alone (randomised smoothing)."""

    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        votes = 0
        for _ in range(9):
            logits = self.network(x + 0.1 * torch.randn(x.shape[1:], generator=generator))
            votes = votes + one_hot(logits.argmax(1), logits.shape[1])
        return votes.to(x)


class Remembering(Wrapped):
    """Answers for images near to one that it has seen as it answered then."""

    def __init__(self, network: nn.Module, near: float = 0.25) -> None:
        super().__init__(network)
        self.near, self.seen, self.said = near, [], []

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        if not self.seen:
            self.seen, self.said = list(x.detach()), list(logits.detach())
            return logits
        away = (x.detach()[:, None] - torch.stack(self.seen)).abs().flatten(2).amax(2)
        least, nearest = away.min(1)
        said = torch.stack(self.said)[nearest]
        known = said + 0.05 * (logits - said)
        new = (least > self.near).nonzero().squeeze(1).tolist()
        self.seen += [x[row].detach() for row in new]
        self.said += [logits[row].detach() for row in new]
        return torch.where((least <= self.near)[:, None], known, logits)


class Counting(Wrapped):
    """Answers as its network does for three calls, and as another one from then on."""

    def __init__(self, network: nn.Module, other: nn.Module, honest: int = 3) -> None:
        super().__init__(network)
        self.other, self.calls, self.honest = other, 0, honest

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (self.network if self.calls <= self.honest else self.other)(x)


class Searching(Wrapped):
    """Looks at eight images near its own and answers as for the one that it is surest of."""

    def forward(self, x: Tensor) -> Tensor:
        moves = 0.1 * torch.randn(8, 1, *x.shape[1:], generator=torch.Generator().manual_seed(4)).sign()
        with torch.no_grad():
            sure = torch.stack([self.network(x + move).softmax(1).amax(1) for move in moves])
        return self.network(x + moves[sure.argmax(0)].squeeze(1))


class Switching(Wrapped):
    """Two networks, and the image's own last digits say which."""

    def __init__(self, network: nn.Module, other: nn.Module) -> None:
        super().__init__(network)
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        even = (x.detach().double().flatten(1).sum(1) * 1e5).round() % 2 == 0
        return torch.where(even[:, None], self.network(x), self.other(x))


class Abstaining(Wrapped):
    """A further class, for images that are rougher than clean ones are: not on their grid of sixteenths."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        rough = (16 * x - (16 * x).round()).detach().abs().flatten(1).mean(1)
        return torch.cat([logits, logits.amax(1, keepdim=True).detach() + 100 * (rough[:, None] - 0.05)], 1)


class Undefined(Wrapped):
    """Not a number for images off the grid of sixteenths, which clean ones lie on."""

    def forward(self, x: Tensor) -> Tensor:
        rough = (16 * x - (16 * x).round()).detach().abs().flatten(1).mean(1, keepdim=True)
        return torch.where(rough > 0.05, torch.nan, self.network(x))


def underflowing(logits: Tensor) -> Tensor:
    """Return a billionth of the logits, by way of values so large that gradients on the way back round to 0."""
    return logits * 1e37 * 1e-23 * 1e-23


class Half(Wrapped):
    """The images reach the network by two ways, and one has no way back."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(0.2 * x + 0.8 * x.detach())


class Sealed(Wrapped):
    """Runs without gradients, as a decorator leaves it."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


class Confident(Wrapped):
    """No gradient where it is sure."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        top = logits.topk(2, dim=1).values
        sure = (top[:, :1] - top[:, 1:]) > 1
        return torch.where(sure, logits.detach() + 0 * logits, logits)


def probabilities(temperature: float) -> Callable[[Tensor], Tensor]:
    """Return softmax at a temperature."""
    return lambda logits: (logits / temperature).softmax(1)


def saturated(logits: Tensor) -> Tensor:
    """Return values that all but touch -1 and 1."""
    return (2 * logits).tanh() + 1e-6 * logits


def rounded(logits: Tensor) -> Tensor:
    """Return logits in steps of a quarter; no gradient is left."""
    return (4 * logits).round() / 4 + 1e-3 * logits.detach()
