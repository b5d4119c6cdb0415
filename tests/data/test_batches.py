import pytest
import torch

from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.data.batches import Augmentation, Batches, Draws, apply, draw
from planish.data.images import Images

EVERYTHING = Augmentation(crop=2, flip=True, cutout=3)


def make(count: int = 10, height: int = 6, width: int = 5) -> Images:
    generator = torch.Generator().manual_seed(count)
    x = torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    return Images.numbered(x, torch.arange(count) % 3, ["a", "b", "c"], "toy")


def slow_twin(x: torch.Tensor, augmentation: Augmentation, draws: Draws) -> torch.Tensor:
    """The same, one image and one operation at a time."""
    height, width = x.shape[2:]
    out = []
    for n, image in enumerate(x):
        if draws.offsets is not None:
            size = (x.shape[1], height + 2 * augmentation.crop, width + 2 * augmentation.crop)
            padded = torch.zeros(size, dtype=x.dtype)
            padded[:, augmentation.crop : -augmentation.crop, augmentation.crop : -augmentation.crop] = image
            top, left = draws.offsets[n].tolist()
            image = padded[:, top : top + height, left : left + width]
        if draws.flips is not None and draws.flips[n]:
            image = image.flip(-1)
        if draws.centres is not None:
            top, left = (draws.centres[n] - augmentation.cutout // 2).tolist()
            image = image.clone()
            for row in range(max(top, 0), min(top + augmentation.cutout, height)):
                for column in range(max(left, 0), min(left + augmentation.cutout, width)):
                    image[:, row, column] = 0
        out.append(image)
    return torch.stack(out)


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(), Augmentation(crop=3), Augmentation(flip=True), Augmentation(cutout=2), EVERYTHING],
)
@pytest.mark.parametrize("floating", [False, True])
def test_augment_agrees_with_the_slow_twin(augmentation: Augmentation, floating: bool):
    x = make(40).x
    x = x.float() / 255 if floating else x
    draws = draw(40, (6, 5), augmentation, torch.Generator().manual_seed(1))
    found = apply(x, augmentation, draws)
    assert torch.equal(found, slow_twin(x, augmentation, draws)) and found.dtype == x.dtype


def test_draws_are_uniform():
    count = 20_000
    draws = draw(count, (6, 5), EVERYTHING, torch.Generator().manual_seed(0))
    assert draws.offsets is not None and draws.flips is not None and draws.centres is not None
    for values, kinds in (
        (draws.offsets[:, 0], 5),
        (draws.offsets[:, 1], 5),
        (draws.flips, 2),
        (draws.centres[:, 0], 6),
        (draws.centres[:, 1], 5),
    ):
        share = torch.bincount(values.long(), minlength=kinds) / count
        assert len(share) == kinds
        assert (share - 1 / kinds).abs().max() < 0.02  # five standard errors of a share of one half
    joint = torch.bincount(draws.offsets[:, 0] * 5 + draws.offsets[:, 1], minlength=25) / count
    assert (joint - 1 / 25).abs().max() < 0.01


def test_an_epoch_holds_every_image_once_with_its_own_label():
    images = make()
    batches = Batches(images, 3, drop_last=False)
    epoch = list(batches.epoch(0, seed=0))
    assert len(epoch) == len(batches) == 4 and len(epoch[-1].x) == 1
    seen = torch.cat([batch.indices for batch in epoch])
    assert sorted(seen.tolist()) == list(range(10)) and seen.tolist() != list(range(10))
    for batch in epoch:
        assert batch.x.dtype == torch.float32
        assert torch.equal(batch.x, images.float_pixels()[batch.indices])
        assert torch.equal(batch.labels, images.labels[batch.indices])


def test_drop_last_leaves_out_the_incomplete_batch():
    batches = Batches(make(), 4)
    assert len(batches) == 2
    assert [len(batch.x) for batch in batches.epoch(0, seed=0)] == [4, 4]
    assert len(Batches(make(), 5)) == len(Batches(make(), 5, drop_last=False)) == 2


def test_indices_are_those_of_the_original_file():
    held_out = make(20).split(8, seed=0)[1]
    seen = torch.cat([batch.indices for batch in Batches(held_out, 4).epoch(0, seed=0)])
    assert sorted(seen.tolist()) == held_out.indices.tolist()


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(s, t) for x, y in zip(a, b, strict=True) for s, t in zip(x[:3], y[:3], strict=True)
    )


@pytest.mark.parametrize("skip", [0, 1, 3, 4])
def test_a_resumed_epoch_continues_exactly(skip: int):
    whole = list(Batches(make(), 3, EVERYTHING, drop_last=False).epoch(5, seed=7))
    resumed = list(Batches(make(), 3, EVERYTHING, drop_last=False).epoch(5, seed=7, skip=skip))
    assert same(resumed, whole[skip:])


def test_epochs_and_seeds_differ_and_the_global_state_is_left_alone():
    batches = Batches(make(), 10, EVERYTHING)
    before = torch.random.get_rng_state()
    orders = {tuple(next(batches.epoch(k, seed=s)).indices.tolist()) for k in (0, 1) for s in (0, 1)}
    assert len(orders) == 4
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second = (next(batches.epoch(k, seed=0)) for k in (0, 1))
    assert not torch.equal(first.x[first.indices.argsort()], second.x[second.indices.argsort()])


def test_wrong_sizes_are_refused():
    with pytest.raises(BadInput, match="batch size 11 is larger than the 10 images of toy"):
        Batches(make(), 11, drop_last=False)
    with pytest.raises(BadInput, match="batch size must be at least 1, got 0"):
        Batches(make(), 0)
    with pytest.raises(BadInput, match="cannot skip 4 batches: an epoch has 3"):
        Batches(make(), 3).epoch(0, seed=0, skip=4)
    with pytest.raises(BadInput, match="crop must be at least 0, got -1"):
        Augmentation(crop=-1)
    with pytest.raises(BadInput, match="cutout must be at least 0, got -1"):
        Augmentation(cutout=-1)
