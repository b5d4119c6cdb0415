import hashlib

import pytest
import torch

from planish.core.errors import BadInput
from planish.data.images import Images, numbered_classes, to_unit


def make(count: int = 6, classes: int = 3) -> Images:
    x = torch.arange(count * 12, dtype=torch.uint8).reshape(count, 3, 2, 2)
    return Images.numbered(x, torch.arange(count) % classes, [f"class {k}" for k in range(classes)], "toy")


def test_to_unit_is_the_correctly_rounded_quotient():
    levels = torch.arange(256, dtype=torch.uint8)
    expected = (torch.arange(256, dtype=torch.float64) / 255).float()
    assert torch.equal(to_unit(levels), expected)
    assert torch.equal(to_unit(expected), expected)


def test_batch_and_take_keep_labels_and_indices_together():
    images = make()
    batch = images.take([4, 1]).as_batch()
    assert batch.indices.tolist() == [4, 1] and batch.labels.tolist() == [1, 1]
    assert torch.equal(batch.x, images.x[[4, 1]].float() / 255)
    assert images.take([4, 1]).take([1]).indices.tolist() == [1]


def test_first_takes_what_there_is():
    images = make()
    assert images.first(2).indices.tolist() == [0, 1]
    assert len(images.first(100)) == len(images.first(None)) == 6
    with pytest.raises(BadInput, match="limit must be at least 1"):
        images.first(0)


def test_split_is_a_partition_that_depends_on_the_seed_only():
    images = make(count=20)
    train, held_out = images.split(5, seed=3)
    assert len(held_out) == 5
    assert sorted(train.indices.tolist() + held_out.indices.tolist()) == list(range(20))
    assert held_out.indices.tolist() == sorted(held_out.indices.tolist())
    assert torch.equal(held_out.x, images.x[held_out.indices])
    assert held_out.indices.tolist() == images.split(5, seed=3)[1].indices.tolist()
    assert held_out.indices.tolist() != images.split(5, seed=4)[1].indices.tolist()
    for count in (0, 20):
        with pytest.raises(BadInput, match="use 1 to 19"):
            images.split(count, seed=0)


def test_digest_covers_pixels_labels_and_shape_but_not_the_name():
    images = make()
    x, labels = images.x, images.labels
    other = Images.numbered(x, labels, images.classes, "other")
    assert images.digest() == other.digest() and len(bytes.fromhex(images.digest())) == 32
    changed = x.clone()
    changed[-1, -1, -1, -1] += 1
    digests = {
        images.digest(),
        Images.numbered(changed, labels, images.classes, "toy").digest(),
        Images.numbered(x, labels.flip(0), images.classes, "toy").digest(),
        Images.numbered(x.reshape(6, 3, 1, 4), labels, images.classes, "toy").digest(),
        Images.numbered(x.float() / 255, labels, images.classes, "toy").digest(),
    }
    assert len(digests) == 5
    header = b"(6, 3, 2, 2) torch.uint8"
    expected = hashlib.sha256(header + x.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    assert images.digest() == expected
    assert Images.numbered(x.transpose(2, 3), labels, images.classes, "toy").digest() != images.digest()


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (torch.zeros(2, 4, 4), [0, 1], r"without a channel axis: give \(N, 1, H, W\)"),
        (torch.zeros(2, 4), [0, 1], "must be"),
        (torch.zeros(0, 1, 4, 4), [], "no images"),
        (torch.zeros(2, 1, 4, 4), [0], "2 images, and labels for 1"),
        (torch.zeros(2, 1, 4, 4), [[0], [1]], r"must be int64 \(N,\)"),
        (torch.full((2, 1, 4, 4), 255.0), [0, 1], "from 255 to 255.*divide by 255"),
        (torch.full((2, 1, 4, 4), -0.5), [0, 1], "from -0.5 to -0.5.*undo the normalisation"),
        (torch.full((2, 1, 4, 4), torch.nan), [0, 1], "NaN"),
        (torch.full((2, 1, 4, 4), torch.inf), [0, 1], "infinite"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.float64), [0, 1], "float64: give uint8, or float32"),
        (torch.zeros(2, 1, 4, 4), [0, 2], "labels range from 0 to 2, but 2 classes need 0 to 1"),
        (torch.zeros(2, 1, 4, 4), [-1, 1], "labels range from -1 to 1"),
    ],
)
def test_bad_images_are_refused(x: torch.Tensor, labels: list[int], message: str):
    with pytest.raises(BadInput, match=message):
        Images.numbered(x, torch.tensor(labels, dtype=torch.int64), ["a", "b"], "toy")


def test_labels_of_another_type_are_refused():
    with pytest.raises(BadInput, match=r"labels are torch.int32"):
        Images.numbered(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int32), ["a"], "toy")


def test_numbered_classes():
    assert numbered_classes(torch.tensor([2, 0])) == ("0", "1", "2")
    with pytest.raises(BadInput, match="labels reach 100000"):
        numbered_classes(torch.tensor([100_000]))


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (2, 32, 32, 4), (2, 8, 8, 1)])
def test_arrays_with_channels_last_are_refused(shape: tuple[int, ...]):
    """Issue: RGBA images, channels last, were taken as images of 32 channels."""
    with pytest.raises(BadInput, match=r"channels last: give \(N, channels, height, width\), 1 or 3 channels"):
        Images.numbered(torch.zeros(shape), torch.tensor([0, 1]), ["a", "b"], "mine")
