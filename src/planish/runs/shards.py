"""A shard of a test set: the images that are judged, what its record says of it, and with what it goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from planish.core.batch import ImageSet
from planish.core.errors import Unlike
from planish.evaluation.stages import ImageShare
from planish.records.evaluation import Evaluation
from planish.records.origin import data_facts
from planish.records.shards import ImageShard, part_of


@dataclass(frozen=True)
class JudgedPart:
    """The images to be judged: all of a test set, or a shard's.

    about: facts for the record's meta. share: for the evaluation of a shard. begun: what a record of the whole test set
    says of them already.
    """

    images: ImageSet
    about: dict[str, Any] = field(default_factory=dict)
    share: ImageShare | None = None
    begun: Evaluation | None = None

    def further(self, found: Evaluation | None) -> Evaluation | None:
        """Return the record to go on from: the one found in the folder, or the whole one's part if it has more."""
        if found is None or (self.begun is not None and len(found.columns) < len(self.begun.columns)):
            return self.begun
        return found


def cut(
    shard: ImageShard | None, images: ImageSet, seed: int, data: Mapping[str, Any], decided: Evaluation | None = None
) -> JudgedPart:
    """Return the shard's part of a test set; None = all of it.

    data: what is known of the data. decided: a record of all the images so far. Raises BadInput for more shards than
    images, Unlike for a record of other data.
    """
    if shard is None:
        return JudgedPart(images)
    count = len(images.labels)
    rows = shard.rows(count, seed)
    own, whole = images.take(rows), data_facts(images)
    facts = {"number": shard.number, "of": shard.of, "images": count, "data": whole}
    if decided is None:
        return JudgedPart(own, {"shard": facts}, ImageShare(count, rows))
    if decided.meta.get("data", {}).get("digest") != whole["digest"]:
        raise Unlike("the record of all shards is of other data; name one that planish merge made of these images")
    begun = part_of(decided, shard, rows)
    begun = replace(begun, meta={**begun.meta, "data": {**data, **data_facts(own)}})
    return JudgedPart(own, {"shard": facts}, ImageShare(count, rows, decided), begun)
