"""How many images go through a model at a time: what its layers make of one says it, and nothing else changes."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from observing import asked
from torch import Tensor, nn

from planish.attacks import PGD
from planish.audit.measures.curvature import gradient_norms
from planish.core.arguments import logits_of
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.core.footprint import CHUNK, LEAST, Footprint, at_a_time, images_at_a_time, in_chunks
from planish.core.modes import Counted
from planish.core.threat import Linf
from planish.evaluation.evaluate import evaluate_steps

THREAT, MIB = Linf(0.01), 2**20
CPU = torch.device("cpu")


class Wide(nn.Module):
    """A layer of so many channels: on images of 16x16 it makes as many KiB of one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Conv2d(1, channels, 1), nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).tanh().mean((2, 3)))  # type: ignore[no-any-return]


def sizes(model: nn.Module, call: Callable[[], Any]) -> list[int]:
    """How many images the model is given at a time while `call` runs."""
    return [len(x) for x in asked(model, call)]


def images(model: nn.Module, count: int) -> Batch:
    """Images that the model classifies correctly, before anything is known of it."""
    x = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return Batch(x, model(x).argmax(1))


@pytest.mark.parametrize(("kib", "fitting"), [(0.25, 256), (64, 256), (128, 128), (256, 64), (1024, 16), (9999, 16)])
def test_as_many_as_a_cache_holds(kib: float, fitting: int):
    """16 MiB of the largest output, but 16 images at least and 256 at most."""
    assert Footprint(int(kib * 1024), 10**9).fitting(CPU) == fitting


def test_an_attack_goes_by_it():
    model = Wide(256)
    batch = images(model, 150)
    seen = sizes(model, lambda: PGD(steps=2)(model, batch.x, batch.labels, threat=THREAT))
    assert seen[0] == 150 and max(seen[1:]) == images_at_a_time(model, batch.x) == 64


def test_what_a_forward_shows_is_known_at_once():
    """The rest of the clean pass goes by it already."""
    model = Wide(256)
    x = images(model, 300).x
    assert sizes(model, lambda: logits_of(model, x)) == [256, 44]
    assert sizes(model, lambda: logits_of(nn.Sequential(model), x)) == [64, 64, 64, 64, 44]


def test_each_size_of_image_is_known_for_itself():
    model = Wide(256)
    x = images(model, 20).x
    logits_of(model, x)
    assert images_at_a_time(model, x) == 64 and images_at_a_time(model, x[..., :8, :8]) == CHUNK


def test_large_images_are_few_from_the_start():
    """Named regression: 256 photographs of 224x224 went through a network of which nothing was known."""
    counts = {side: images_at_a_time(nn.Flatten(), torch.empty(0, 3, side, side)) for side in (32, 64, 224)}
    assert counts == {32: CHUNK, 64: 85, 224: LEAST}


def test_of_large_images_the_first_few_show_how_many_fit():
    """A GPU holds more of them than are sent at first."""
    model, x = nn.Sequential(nn.AvgPool2d(256), nn.Flatten()), torch.rand(20, 3, 256, 256)
    logits_of(model, x)
    assert sizes(model, lambda: logits_of(model, x)) == [20]


def test_few_images_are_not_observed_and_go_at_once():
    """Nothing is looked up for them: it took a hundredth of FGSM's time on 8 images of a small network."""
    model = Wide(256)
    x = images(model, LEAST - 1).x
    logits_of(model, x)
    assert images_at_a_time(model, x) == LEAST and images_at_a_time(model, x[:0]) == CHUNK


def test_what_a_call_or_a_user_asks_for_counts():
    model = Wide(256)
    x = images(model, 100).x
    logits_of(model, x)
    assert images_at_a_time(model, x, 100) == 100
    with at_a_time(7):
        assert images_at_a_time(model, x) == images_at_a_time(model, x, 100) == 7
    with at_a_time(100):
        assert images_at_a_time(model, x) == 64


@pytest.mark.parametrize(("chunk", "told"), [(0, "be at least 1, got 0"), (8.5, "be a whole number, got 8.5")])
def test_a_chunk_is_a_whole_number_from_1(chunk: int, told: str):
    """Named regression: with a chunk of 0 an evaluation looped for ever."""
    model = Wide(4)
    batch = images(model, 3)
    with pytest.raises(BadInput, match=f"chunk must {told}"):
        evaluate_steps(model, batch, threat=THREAT, attacks="fgsm", chunk=chunk)


def test_images_at_a_time_are_whole():
    """Named regression: 8.5 images at a time were accepted."""
    with pytest.raises(BadInput, match=r"batch size must be a whole number, got 8\.5"), at_a_time(8.5):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize(("copies", "fitting", "asked", "most"), [(2, 32, 50, 3), (8, 8, 12, 1), (100, 1, 1, 1)])
def test_copies_count(copies: int, fitting: int, asked: int, most: int):
    """Of an image, or draws of a model: together they are to take no more than images alone."""
    model = Wide(256)
    x = images(model, 100).x
    logits_of(model, x)
    assert images_at_a_time(model, x, copies=copies) == fitting
    assert images_at_a_time(model, x, 100, copies) == asked
    with at_a_time(7):
        assert images_at_a_time(model, x, None, copies) == images_at_a_time(model, x, 100, copies) == most
    assert Footprint(1024, 1024).fitting(CPU, copies) == min(CHUNK, 16 * 1024 // copies)


def test_blocks_within_blocks_let_no_more_through():
    x = torch.empty(0, 1, 4, 4)
    with at_a_time(7):
        with at_a_time(100), at_a_time(None):
            assert images_at_a_time(nn.Flatten(), x) == 7
        with at_a_time(3):
            assert images_at_a_time(nn.Flatten(), x) == 3


def test_outcomes_and_passes_are_the_same():
    found = []
    for chunk in (None, 100):
        model = Wide(256)
        batch = images(model, 100)
        counted = Counted(model)
        logits = logits_of(counted, batch.x, chunk)
        found.append((logits, *in_chunks(partial(gradient_norms, threat=THREAT), counted, batch, chunk)))
        assert (counted.forwards, counted.backwards) == (200, 100)
    for fitting, whole in zip(*found, strict=True):
        assert torch.allclose(fitting, whole, atol=1e-6)


def test_the_model_keeps_its_own_hooks_and_gets_no_others():
    model, calls = Wide(256), list[int]()
    x = images(model, 20).x
    model.layer.register_forward_hook(lambda *given: calls.append(1))
    logits_of(model, x)
    assert len(model.layer._forward_hooks) == len(calls) == 1 and not model.head._forward_hooks


def test_a_forward_that_fails_shows_nothing():
    model = Wide(256)
    x, layer = images(model, 20).x, model.head
    model.head = nn.Linear(7, 3)
    with pytest.raises(RuntimeError):
        logits_of(model, x)
    assert not model.layer._forward_hooks and images_at_a_time(model, x) == CHUNK
    model.head = layer
    logits_of(model, x)
    assert images_at_a_time(model, x) == 64


def test_outputs_of_several_parts_count():
    """A layer may return tensors in a tuple."""

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x.repeat(1, 256, 1, 1)

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = Twice()

        def forward(self, x: Tensor) -> Tensor:
            return self.parts(x)[0].flatten(1)  # type: ignore[no-any-return]

    model, x = First(), torch.rand(20, 1, 16, 16)
    logits_of(model, x)
    assert images_at_a_time(model, x) == 64


def test_what_runs_as_a_copy_is_left_alone():
    """Hooks would have compiled code made anew."""
    model = Wide(256)
    x = images(model, 20).x
    logits_of(nn.DataParallel(model), x)
    assert images_at_a_time(model, x) == CHUNK


def test_a_quarter_of_a_gpu_holds_all_outputs(monkeypatch: pytest.MonkeyPatch):
    """On a processor the largest output counts, on a GPU their sum and its memory."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=16 * 1024 * MIB)
    )
    footprint = Footprint(largest=3 * MIB, total=128 * MIB)
    assert footprint.fitting(torch.device("cuda", 0)) == 32 and footprint.fitting(CPU) == LEAST
    assert Footprint(MIB, MIB).fitting(torch.device("cuda", 0)) == CHUNK
    assert Footprint(MIB, 2**20 * MIB).fitting(torch.device("cuda", 0)) == LEAST
