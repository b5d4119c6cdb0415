"""A shard of a test set: the images that are judged, what its record says of it, and with what it goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from planish.core.batch import Batch
from planish.core.errors import Unlike
from planish.evaluation.stages import ImageShare
from planish.records.evaluation import Evaluation
from planish.records.origin import data_facts
from planish.records.shards import ImageShard, part_of


@dataclass(frozen=True)
class JudgedPart:
    """The images to be judged: all of a test set, or a shard's.

    about: facts for the record's meta. share: for the evaluation of a shard. begun: what a record of the whole test set
    says of them already. x_adv: (M, ...) the images as its attacks left them, where these were kept.
    """

    batch: Batch
    about: dict[str, Any] = field(default_factory=dict)
    share: ImageShare | None = None
    begun: Evaluation | None = None
    x_adv: Tensor | None = None

    def further(self, found: Evaluation | None) -> Evaluation | None:
        """Return the record to go on from: the one found in the folder, or the whole one's part if it has more."""
        if found is None or (self.begun is not None and len(found.columns) < len(self.begun.columns)):
            return self.begun
        return found


def cut(
    shard: ImageShard | None,
    batch: Batch,
    seed: int,
    data: Mapping[str, Any],
    after: tuple[Evaluation, Tensor | None] | None = None,
) -> JudgedPart:
    """Return the shard's part of a test set; None = all of it.

    data: what is known of the data. after: a record of all the images so far, and the images that its attacks left.
    Raises BadInput for more shards than images, Unlike for a record of other data.
    """
    if shard is None:
        return JudgedPart(batch)
    rows = shard.rows(len(batch.x), seed)
    own, whole = batch.select(rows), data_facts(batch)
    facts = {"number": shard.number, "of": shard.of, "images": len(batch.x), "data": whole}
    if after is None:
        return JudgedPart(own, {"shard": facts}, ImageShare(len(batch.x), rows))
    decided, x_adv = after
    if decided.meta.get("data", {}).get("digest") != whole["digest"]:
        raise Unlike("the record of all shards is of another data; name one that planish merge made of these images")
    begun = part_of(decided, shard, rows)
    begun = replace(begun, meta={**begun.meta, "data": {**data, **data_facts(own)}})
    images = None if x_adv is None else x_adv[rows]
    return JudgedPart(own, {"shard": facts}, ImageShare(len(batch.x), rows, decided), begun, images)
