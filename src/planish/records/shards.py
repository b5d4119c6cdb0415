"""A test set in shards: which images are whose, a shard's part of a record, and the record that theirs make together.

No shard asks another: which images it has follows from the seed and the number of images alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from planish.core.errors import BadInput
from planish.core.randomness import keyed
from planish.core.words import another, few, number_of
from planish.records.origin import unnamed
from planish.records.store import Columned, Integers

Record = TypeVar("Record", bound=Columned)
Meta = dict[str, Any]
COUNTED = ("stuck", "vanished")
"""Facts of a column that are numbers of images."""
PER_IMAGE = ("eot", "slopes")
"""Facts of a column that are lists, an entry for each of their "indices"."""
IDENTITY = ("model", "threat", "norm", "radius", "seed", "eot")
"""Facts of a record in which shards of one work agree, besides the data and the planish that made them."""


@dataclass(frozen=True)
class ImageShard:
    """Part `number` of `of`, from 1: every of-th image in an order that the seed and the number of images fix.

    Raises BadInput unless number is from 1 to of.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise BadInput(f"shard {self} is none: write NUMBER/OF with NUMBER from 1 to OF, such as 3/16")

    @classmethod
    def parsed(cls, text: str) -> Self:
        """Return the shard of a text such as "3/16". Raises BadInput."""
        if not re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", text):
            raise BadInput(f"shard '{text}' is none: write NUMBER/OF with NUMBER from 1 to OF, such as 3/16")
        return cls(*map(int, text.split("/")))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def suffix(self) -> str:
        """What the name of its folder ends in."""
        return f"-shard-{self.number}-of-{self.of}"

    def rows(self, images: int, seed: int) -> Tensor:
        """Return the rows (M,) of its images, rising. Raises BadInput where there are more shards than images."""
        if self.of > images:
            raise BadInput(f"{self.of} shards of {number_of(images)} leave some empty: use at most {images}")
        order = keyed(torch.arange(images, device="cpu"), seed, 1).squeeze(1).argsort(stable=True)
        return order[self.number - 1 :: self.of].sort().values

    def part(self, count: int) -> int:
        """Return its part of a number that shards have in common: the parts of all add up to it."""
        return count * self.number // self.of - count * (self.number - 1) // self.of


def part_of(record: Record, shard: ImageShard, rows: Tensor) -> Record:
    """Return what a record of the whole test set says of a shard's images, with the shard's part of what it cost."""
    part = partial(_part, shard=shard, rows=rows.numpy(), indices=record.indices)
    own: Record = part(record, columns=tuple(map(part, record.columns)))
    return own


def _part(whole: Any, shard: ImageShard, rows: Integers, indices: Integers, **own: Any) -> Any:
    """Return a record's or a column's part. own: what is its own already."""
    for field in fields(whole):
        value = getattr(whole, field.name)
        if isinstance(value, np.ndarray):
            own[field.name] = value[rows]
        elif isinstance(value, int):
            own[field.name] = shard.part(value)
        elif isinstance(value, float):
            own[field.name] = value / shard.of
    ids = set(indices[rows].tolist())
    meta: Meta = {key: shard.part(value) if key in COUNTED else value for key, value in whole.meta.items()}
    if "no_gradient" in meta:
        meta["no_gradient"] = [index for index in meta["no_gradient"] if index in ids]
    for key in PER_IMAGE:
        fact: Any = meta.get(key)
        if isinstance(fact, Mapping):  # of a column; a record's "eot" is how many draws judged
            meta[key] = _picked(fact, [at for at, index in enumerate(fact["indices"]) if index in ids])
    return replace(whole, meta=meta, **own)


def joined(named: Mapping[str, Record]) -> Record:
    """Return the record that one process would have written, from those of all shards by the names of their folders.

    All but times, what guards spent and where it was made is as that one's. Raises BadInput that names a shard that is
    missing, doubled, not finished, or of something else than the first.
    """
    _refuse_foreign(named)
    shards = _told_apart(named)
    _refuse_others(named)
    parts = [named[shards[number]] for number in sorted(shards)]
    rows = [_shard(part).rows(part.meta["shard"]["images"], part.meta["seed"]).numpy() for part in parts]
    whole = _values(parts, rows)
    places = {index: place for place, index in enumerate(whole["indices"].tolist())}
    columns = tuple(_column(own, rows, places) for own in zip(*(part.columns for part in parts), strict=True))
    return replace(parts[0], **whole, columns=columns, meta=_meta([part.meta for part in parts]))  # type: ignore[type-var]


def _refuse_foreign(named: Mapping[str, Columned]) -> None:
    first, known = next(iter(named.items()))
    for name, record in named.items():
        if "shard" not in record.meta:
            raise BadInput(f"{name} holds no shard but a whole record; merge folders that --shard NUMBER/OF wrote")
        for what, fact in _identity(record).items():
            if fact != _identity(known)[what]:
                raise BadInput(f"{name} is of {another(what)} than {first}: leave it out or make it anew")


def _identity(record: Columned) -> Meta:
    """Return what shards of one work agree in, by what it is called."""
    facts, made = record.meta["shard"], record.meta.get("versions", {}).get("planish")
    own = {key: unnamed(record.meta.get(key)) for key in IDENTITY}
    data = {"data": (facts["data"], facts["images"]), "number of shards": facts["of"]}
    return {**own, **data, "planish": (made, record.meta.get("code_digest"))}


def _shard(record: Columned) -> ImageShard:
    return ImageShard(record.meta["shard"]["number"], record.meta["shard"]["of"])


def _told_apart(named: Mapping[str, Columned]) -> dict[int, str]:
    """Return each shard's name by its number. Raises BadInput if one is doubled, missing or not finished."""
    found: dict[int, str] = {}
    for name, record in named.items():
        facts = record.meta["shard"]
        if facts["number"] in found:
            twice = f"{found[facts['number']]} and {name}"
            raise BadInput(f"shard {facts['number']}/{facts['of']} is there twice: {twice}; leave one of them out")
        found[facts["number"]] = name
    for name, record in named.items():
        shard = _shard(record)
        if "left" not in record.meta["shard"]:
            how = f"--shard {shard} --out {name} --resume"
            raise BadInput(f"{name} is not finished: give its command again, with {how}")
    missing = [f"{number}/{shard.of}" for number in range(1, shard.of + 1) if number not in found]
    if missing:
        told = few(missing)
        raise BadInput(f"missing: shard {told}; make each by the others' command, with --shard {missing[0]}")
    return found


def _refuse_others(named: Mapping[str, Columned]) -> None:
    """Raise BadInput where shards ran other attacks."""
    first, known = next(iter(named.items()))
    for name, record in named.items():
        if _ran(record) != _ran(known):
            own, theirs = (", ".join(one.asked) or "none" for one in (record, known))
            raise BadInput(f"{name} ran other attacks ({own}) than {first} ({theirs}): leave it out or make it anew")


def _ran(record: Columned) -> list[Any]:
    """Return what a record ran, and what it left."""
    ran = [[column.name, *(column.meta.get(key) for key in ("attack", "precision"))] for column in record.columns]
    return [*ran, record.meta["shard"]["left"]]


def _values(parts: Sequence[Any], rows: Sequence[Integers]) -> dict[str, Any]:
    """Return the arrays of all images, and the sums of numbers."""
    whole: dict[str, Any] = {}
    for field in fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], np.ndarray):
            whole[field.name] = placed(values, rows)
        elif isinstance(values[0], int | float):
            whole[field.name] = sum(values)
    return whole


def placed(values: Sequence[Any], rows: Sequence[Integers]) -> Any:
    """Return arrays of all images from those of each shard, whose images have these rows."""
    whole = np.empty((sum(map(len, values)), *values[0].shape[1:]), values[0].dtype)
    for part, own in zip(values, rows, strict=True):
        whole[own] = part
    return whole


def _column(parts: Sequence[Any], rows: Sequence[Integers], places: Mapping[int, int]) -> Any:
    """Return the column of all images. places: of each index."""
    metas = [part.meta for part in parts]
    meta = {**{key: value for one in metas for key, value in one.items()}, **metas[0]}
    meta |= {key: sum(one.get(key, 0) for one in metas) for key in COUNTED if key in meta}
    if "no_gradient" in meta:
        meta["no_gradient"] = sorted((at for one in metas for at in one.get("no_gradient", ())), key=places.__getitem__)
    for key in PER_IMAGE:
        if key in meta:
            meta[key] = _gathered([one[key] for one in metas], places)
    return replace(parts[0], **_values(parts, rows), meta=meta)


def _picked(fact: Mapping[str, Any], order: Sequence[int]) -> Meta:
    """Return a fact of single images, of those at these places of its lists alone."""
    return {key: [value[at] for at in order] if isinstance(value, list) else value for key, value in fact.items()}


def _gathered(facts: Sequence[Meta], places: Mapping[int, int]) -> Meta:
    """Return a fact of single images of all shards, in the order of the whole test set."""
    lists = [key for key, value in facts[0].items() if isinstance(value, list)]
    whole = facts[0] | {key: [value for fact in facts for value in fact[key]] for key in lists}
    return _picked(whole, sorted(range(len(whole["indices"])), key=lambda at: places[whole["indices"][at]]))


def _meta(metas: Sequence[Meta]) -> Meta:
    """Return the facts of the whole record: the first shard's, with sums of what was spent and all that was told."""
    facts = metas[0]["shard"]
    whole = {key: value for key, value in metas[0].items() if key not in ("shard", "left")}
    whole["data"] = {**whole["data"], **facts["data"]}
    whole["device"] = ", ".join(dict.fromkeys(str(meta["device"]) for meta in metas))
    for key in ("warnings", "notes"):
        if key in whole:
            whole[key] = list(dict.fromkeys(text for meta in metas for text in meta.get(key, ())))
    for key in ("clean", "guards"):
        if key in whole:
            whole[key] = {part: sum(meta.get(key, {}).get(part, 0) for meta in metas) for part in whole[key]}
    return whole | ({"left": facts["left"]} if facts["left"] else {})
