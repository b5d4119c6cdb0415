# %% [markdown]
# # Write an attack and a method
#
# Both are one class. Nothing in planish has to be changed, and what you write is
# judged, recorded and compared like what is there.
#
# ## An attack
#
# A frozen dataclass with a method `search`. This one follows the sign of the gradient
# of the margin (the largest wrong logit minus the true one), averaged over the steps
# so far.

# %%
from dataclasses import dataclass

import torch

import planish
from planish.attacks import Attack, untouched
from planish.core.losses import margin
from planish.core.modes import attacked
from planish.core.randomness import drawn_seed, keyed_draws
from planish.search.ascent import with_logits


@dataclass(frozen=True)
class AveragedAscent(Attack):
    """Steps along the sign of the mean gradient of the margin, from a random point."""

    steps: int = 20

    def search(self, model, batch, threat, *, generator):
        """Return the best point of each image."""
        with attacked(model):
            batch = with_logits(model, batch)
            start = untouched(self, batch)
            x_adv = threat.sample(
                batch.x, keyed_draws(batch.x, batch.indices, drawn_seed(generator))
            )
            best, score, mean = batch.x, start.score, torch.zeros_like(batch.x)
            for step in range(self.steps):
                x_adv = x_adv.detach().requires_grad_()
                height = margin(model(x_adv), batch.labels)
                mean = (step * mean + torch.autograd.grad(height.sum(), x_adv)[0]) / (
                    step + 1
                )
                better = height.detach() > score
                best = torch.where(better.view(-1, 1, 1, 1), x_adv.detach(), best)
                score = torch.where(better, height.detach(), score)
                x_adv = threat.project(
                    x_adv + threat.radius / 4 * threat.steepest(mean), batch.x
                )
        return start._replace(
            x_adv=best, score=score, passes=start.passes + 2 * self.steps
        )


# %% [markdown]
# `attacked` puts the model into evaluation mode and leaves it as it was; `threat`
# knows its norm, so the attack works in Linf and in L2; `keyed_draws` gives each
# image noise of its own, so that a batch gives what its halves give.

# %%
settings = planish.Settings(batch_size=64, learning_rate=0.1)
plain = planish.train(
    "small-cnn",
    "digits",
    method="n-fgsm",
    threat="Linf:0.1",
    epochs=3,
    settings=settings,
).model
test = planish.data.load("digits", "test", limit=100).as_batch()
attacks = {
    "averaged": AveragedAscent(),
    "pgd": planish.attacks.PGD(20, 1),
    "apgd-t": planish.attacks.APGDT(20),
}
for name, attack in attacks.items():
    found = planish.evaluate(
        plain, test.x, test.labels, threat="Linf:0.1", attacks={name: attack}
    )
    print(f"{name:9} leaves {found.robust_accuracy()}")

# %% [markdown]
# Check what every attack owes: its images stay in the ball, and halves of a batch
# give what the batch gives.

# %%
threat, half = planish.Linf(0.1), slice(0, 50)
whole = AveragedAscent()(plain, test.x, test.labels, threat, seed=0)
part = AveragedAscent()(plain, test.x[half], test.labels[half], threat, seed=0)
assert threat.feasible(whole.x_adv, test.x).all()
assert torch.allclose(whole.x_adv[half], part.x_adv, atol=1e-6)

# %% [markdown]
# ## A method
#
# A method turns a batch into the loss that the optimizer minimises. This one trains
# on the image and on its adversarial image, half each (Goodfellow, Shlens and Szegedy
# 2015, equation in section 6).

# %%
from torch.nn.functional import cross_entropy

from planish.methods import Plain, TrainingLoss


@dataclass(frozen=True)
class Mixed(Plain):
    """share CE(x) + (1 - share) CE(x_adv), x_adv by one full step."""

    share: float = 0.5

    def __call__(self, model, batch, threat, context):
        """Return the loss of the batch."""
        x = batch.x.detach().requires_grad_()
        logits = model(x)
        clean = cross_entropy(logits, batch.labels)
        (slope,) = torch.autograd.grad(clean, x, retain_graph=True)
        x_adv = threat.project(
            batch.x + threat.radius * threat.steepest(slope), batch.x
        )
        hard = cross_entropy(model(x_adv), batch.labels)
        total = self.share * clean + (1 - self.share) * hard
        return TrainingLoss.of(
            total, logits, clean_cross_entropy=clean, adversarial_cross_entropy=hard
        )


run = planish.train(
    "small-cnn",
    "digits",
    method=Mixed(),
    threat="Linf:0.1",
    epochs=3,
    settings=settings,
)
print(
    {
        name: round(value, 3)
        for name, value in run.history[-1].items()
        if "entropy" in name
    }
)
mixed = planish.evaluate(
    run.model, test.x, test.labels, threat="Linf:0.1", attacks="planish-suite"
)
print("robust", mixed.robust_accuracy())

# %% [markdown]
# In a file of your own, both have a name on the command line: `--attacks
# my_attack.py:AveragedAscent-50`, `--method my_method.py:Mixed`. More on both, and on
# checks of the audit: [extending](../docs/extending.md).
