# %% [markdown]
# # Judge your model
#
# You have a classifier, and want to know how often somebody can fool it who may
# change each pixel a little. This takes three calls. The classifier here is small and
# reads handwritten digits; everything is the same with yours.

# %%
import torch
from torch import nn

import planish

digits = planish.data.load("digits", "train").as_batch()
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(150):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(digits.x), digits.labels).backward()
    optimizer.step()

# %% [markdown]
# A model is a `torch.nn.Module` from images (N, C, H, W) with pixels in [0, 1] to
# logits (N, K). If yours expects normalised pixels, put the normalization inside:
# `planish.models.Normalized(network, mean, std)`.
#
# What an attacker may do is the *threat*: each pixel may move by up to a radius
# (`Linf`), or the whole image by up to a Euclidean length (`L2`). Radii are in pixels
# of [0, 1].

# %%
test = planish.data.load("digits", "test", limit=200).as_batch()
x, labels = test.x, test.labels
evaluation = planish.evaluate(
    model, x, labels, threat="Linf:0.1", attacks="pgd-10-1,planish-suite"
)
print(evaluation)

# %% [markdown]
# Each line attacks what the lines before it did not break, so the last number is the
# one to report: the share of images that is classified correctly **and** that nothing
# broke. Its interval says how far so few images let it be off.
#
# Say what was measured, all of it:

# %%
print(evaluation.headline())

# %%
planish.plot.accuracies({"my model": evaluation})

# %% [markdown]
# Other questions have other calls. How far away is the nearest image that is
# misclassified? Here no radius is chosen beforehand; the figure shows accuracy at
# every radius.

# %%
distances = planish.minimum_distance(
    model, x[:60], labels[:60], norm="L2", attack="ddn-40"
)
print(f"half of the images are broken within {distances.median():.2f} (L2)")
planish.plot.distances(distances)

# %% [markdown]
# Which images are weak? Every record holds a number for each image.

# %%
robust = evaluation.survivors()
for digit in range(10):
    of_digit = labels.numpy() == digit
    print(f"{digit}: {robust[of_digit].sum()} of {of_digit.sum()} robust")

# %% [markdown]
# A number that attacks left is an **upper bound**: a better attack can only lower it.
# Whether attacks could do their work at all is what [the audit](is_it_real.py) asks.
# How to raise the number is next: [train a robust one](train_a_robust_model.py).
#
# The same from the command line, for a model in a file of yours:
#
# ```
# planish evaluate my_model.py:build --data folder:photos --radius 8/255
# ```
