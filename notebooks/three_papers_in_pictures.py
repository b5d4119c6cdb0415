# %% [markdown]
# # The three papers in pictures
#
# planish grew from three papers with one idea: make the loss near each image
# *linear*. Then one gradient tells all, a cheap attack in training is a strong one,
# and a small slope is a guarantee.
#
# - Qin et al. 2019, *Adversarial robustness through local linearization* (LLR)
# - Finlay and Oberman 2019, *Scaleable input gradient regularization for adversarial
#   robustness*
# - Li and Yu 2022, *Stable and efficient adversarial training through local
#   linearization* (SEAT)
#
# The pictures are of a small network on handwritten digits, trained for seconds; the
# papers' own tables, run again, are in [reproduction](../docs/reproduction.md).

# %%
import torch

import planish

torch.manual_seed(0)
RADIUS = 0.15
SETTINGS = planish.Settings(batch_size=64, learning_rate=0.1)
test = planish.data.load("digits", "test", limit=64).as_batch()


def trained(method, epochs=3, radius=RADIUS):
    """A smooth network: LLR lessens second derivatives, and a ReLU has none."""
    model = planish.models.build(
        "small-cnn", classes=10, channels=1, width=16, activation="softplus"
    )
    threat = planish.Linf(radius)
    return planish.train(
        model, "digits", method=method, threat=threat, epochs=epochs, settings=SETTINGS
    )


models = {
    "standard": trained("standard").model,
    "gradient penalty": trained(planish.methods.GradientPenalty(weight=1.0)).model,
    "LLR": trained("llr-2").model,
    "SEAT": trained("seat").model,
}

# %% [markdown]
# ## LLR: how far is the loss from a plane?
#
# LLR measures gamma, the largest distance in the ball between the loss and its
# tangent plane at the image (equation 6), and adds it to what training minimises
# (equation 8). Of an ordinarily trained network it is large.

# %%
gammas = {
    name: planish.measures.local_linearity(
        model, test.x, test.labels, planish.Linf(RADIUS), steps=10
    ).gamma
    for name, model in models.items()
}
for name, gamma in gammas.items():
    print(f"{name:17} median gamma {gamma.median():.3f}")
planish.plot.gammas(gammas)

# %% [markdown]
# The same as surfaces, the papers' best known picture: the loss over the direction of
# an attack and a random one.


# %%
def surface(name):
    planes = planish.measures.loss_plane(
        models[name], test.x[:1], test.labels[:1], planish.Linf(RADIUS), points=17
    )
    return planish.plot.loss_surface(planes)


surface("standard")

# %%
surface("LLR")

# %% [markdown]
# ## Gradient regularization: a small slope bounds what an attack can gain
#
# Finlay and Oberman penalise the length of the gradient, in the norm dual to the
# threat's (equation 8), with a finite difference in place of a double backward. In an
# Linf ball it is the l1 norm that counts. Medians over the images, of the gradient of
# the margin, beside the distance at which an attack finds the nearest adversarial
# image:

# %%
for name, model in models.items():
    norms = planish.measures.gradient_norms(
        model, test.x, test.labels, planish.Linf(RADIUS)
    )
    far = planish.minimum_distance(
        model, test.x, test.labels, norm="Linf", attack="fmn-15"
    )
    slope, distance = norms.dual.median(), far.median()
    print(f"{name:17} dual norm {slope:5.1f}, nearest adversarial image {distance:.3f}")

# %% [markdown]
# ## SEAT: why training by one step collapses
#
# FGSM training finds its images by one step. A network can answer by bending its
# loss, so that the step leads nowhere, while several steps still break it:
# *catastrophic overfitting*. SEAT adds the linearity error at that very step
# (equation 9).
#
# Below: accuracy of a deeper network under one step and under twenty, after each
# epoch, at a large radius.

# %%
from matplotlib import pyplot

LARGE = planish.Linf(0.3)
figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for axes, method in zip(panels, ("fgsm", "seat"), strict=True):
    torch.manual_seed(0)
    deep = planish.models.build("preact-resnet-18", classes=10, channels=1, width=8)
    settings = planish.Settings(batch_size=64, learning_rate=0.3)
    steps = planish.train_steps(
        deep, "digits", method=method, threat=LARGE, epochs=7, settings=settings
    )
    seen = {"fgsm": [], "pgd-20-1": []}
    for _ in steps:
        for attack, shares in seen.items():
            left = planish.evaluate(
                steps.run.model, test.x, test.labels, threat=LARGE, attacks=attack
            )
            shares.append(left.robust_accuracy().value)
    for attack, shares in seen.items():
        axes.plot(range(1, len(shares) + 1), shares, marker="o", label=attack)
    axes.set(title=f"trained by {method}", xlabel="epoch", ylim=(0, 1))
    one, twenty = (shares[-1] for shares in seen.values())
    print(f"{method}: in the end one step leaves {one:.0%}, twenty leave {twenty:.0%}")
panels[0].set_ylabel("accuracy under attack")
panels[0].legend()
figure

# %% [markdown]
# Where the two lines of a training part, what it reports of itself is no longer true.
# `planish train --guard` looks for just that while training runs, and [the
# audit's](is_it_real.py) check `one-step-gap` looks for it afterwards.
#
# At the scale of the papers:
# [results](../docs/results.md#catastrophic-overfitting-and-the-guard).
