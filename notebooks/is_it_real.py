# %% [markdown]
# # Is it real?
#
# A model can withstand every gradient attack and still be broken with ease: where its
# gradient is zero, random or points the wrong way, an attack that follows it goes
# nowhere. That is a *masked gradient*. The number it leaves is no robustness, and it
# looks the same.
#
# Here are two models: one trained by PGD, and the same one behind somebody's idea of
# a defence, rounding the pixels.

# %%
import textwrap

import torch
from torch import nn

import planish

THREAT = "Linf:0.1"
settings = planish.Settings(batch_size=64, learning_rate=0.1)
honest = planish.train(
    "small-cnn", "digits", method="pgd-3", threat=THREAT, epochs=3, settings=settings
).model


class Rounded(nn.Module):
    """A network that sees pixels rounded to five levels."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network((x * 4).round() / 4)


masked = Rounded(honest).eval()
test = planish.data.load("digits", "test", limit=60).as_batch()
for name, model in {"honest": honest, "masked": masked}.items():
    print(
        name,
        planish.evaluate(
            model, test.x, test.labels, threat=THREAT, attacks="pgd-50-1"
        ).robust_accuracy(),
    )

# %% [markdown]
# By PGD with 50 steps the defence looks like a success. Ask for reasons to doubt:

# %%
audits = {
    name: planish.audit(
        model, test.x, test.labels, threat=THREAT, about={"model": {"name": name}}
    )
    for name, model in {"honest": honest, "masked": masked}.items()
}
for name, audit in audits.items():
    print(name, "->", audit.verdict)

# %% [markdown]
# `open` says that nothing failed, and that some questions are left to larger budgets:
# no audit proves robustness, it only finds no reason to doubt. What failed, and what
# each finding means:

# %%
for finding in audits["masked"].findings:
    if finding.verdict == "fail":
        told = f"{finding.check}: {finding.meaning} {finding.advice}"
        print(textwrap.fill(told, 86, subsequent_indent="    "))

# %%
assert audits["masked"].verdict == "fail" and audits["honest"].verdict != "fail"

# %% [markdown]
# The gradient is zero at every image, because a step function is flat. Attacks that
# ask for no gradient, or average it over noise, or borrow it from another network,
# are not stopped:

# %%
surrogates = {"honest": honest}
attacks = "pgd-20-1,transfer-20-1,smoothed-10-4,square-300"
left = planish.evaluate(
    masked, test.x, test.labels, threat=THREAT, attacks=attacks, surrogates=surrogates
)
print(left)

# %% [markdown]
# The loss shows it too. Along the way of an attack that was made on the honest model,
# its loss is a slope. That of the masked one is a staircase: flat around every
# point, and it rises all the same.

# %%
from matplotlib import pyplot

one, label = test.x[:1], test.labels[:1]
way = planish.attacks.PGD(20, 1)(honest, one, label, "Linf:0.2").x_adv - one
shares = torch.linspace(0, 1, 201)
along = one + shares.view(-1, 1, 1, 1) * way
figure, axes = pyplot.subplots(figsize=(6, 3.2))
for name, model in {"honest": honest, "masked": masked}.items():
    with torch.no_grad():
        loss = nn.functional.cross_entropy(
            model(along), label.expand(201), reduction="none"
        )
    axes.plot(0.2 * shares, loss, label=name)
axes.set(
    xlabel="how far along the attack, pixels of [0, 1]",
    ylabel="loss",
    title="Loss along an attack",
)
axes.legend()
figure

# %% [markdown]
# `audit.save("audits/mine")` writes the page with all checks, figures and a model
# card. On the command line the audit exits with 1 where a check fails, so a pipeline
# can stop there:
#
# ```
# planish audit my_model.py:build --data folder:photos --radius 8/255
# ```
#
# All checks: [the audit](../docs/audit.md). Why gradients lie: [masked
# gradients](../docs/masked-gradients.md).
