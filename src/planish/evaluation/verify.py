"""Saved adversarial images judged afresh."""

from pathlib import Path

import torch
from torch import nn

from planish.core.arguments import (
    Images,
    Labels,
    batch_of,
    check_images,
    check_logits,
    logits_of,
    model_of,
    path_of,
    threat_of,
)
from planish.core.batch import per_image
from planish.core.errors import BadInput
from planish.core.losses import margin
from planish.core.threat import ThreatModel
from planish.records.evaluation import Verified, load_adversarials
from planish.records.statistics import Estimate


def verify(
    model: nn.Module,
    x: Images,
    labels: Labels | None,
    path: str | Path,
    threat: ThreatModel | str,
    *,
    source: str = "the images given",
) -> Verified:
    """Judge saved adversarial images afresh, trusting nothing but the model, the clean images and the saved ones.

    x, labels: the clean images, as for `evaluate`; each saved image is compared with the one of its index.
    path: what `save_adversarials` or `planish evaluate --keep-images` wrote.
    threat: an image outside its ball or the box breaks nothing.
    source: what messages call the clean images. Raises BadInput if one is missing or shapes differ.
    """
    network, threat, batch, path = model_of(model), threat_of(threat), batch_of(x, labels), path_of(path)
    images, indices = load_adversarials(path)
    position = {index: row for row, index in enumerate(batch.indices.tolist())}
    missing = [index for index in indices.tolist() if index not in position]
    if missing:
        raise BadInput(f"{path} has image {missing[0]}, which {source} does not hold")
    rows = [position[index] for index in indices.tolist()]
    some = batch.select(torch.tensor(rows, dtype=torch.int64, device=batch.x.device))
    if some.x.shape != images.shape:
        raise BadInput(f"{path} holds images {images.shape[1:]}, the test set {tuple(some.x.shape[1:])}")
    x_adv = torch.from_numpy(images).to(some.x.device)
    check_images(some, threat)
    correct = margin(check_logits(network, some), some.labels) < 0
    feasible = threat.feasible(x_adv, some.x)
    logits = logits_of(network, torch.where(per_image(feasible, x_adv), x_adv, some.x))
    standing = correct & (margin(logits, some.labels) < 0)
    return Verified(
        Estimate.of(correct.cpu().numpy()),
        Estimate.of(standing.cpu().numpy()),
        int((~feasible).sum()),
        float(threat.norm(x_adv - some.x).max()),
    )
