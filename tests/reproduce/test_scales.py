"""The rules that cut an experiment down."""

from dataclasses import replace

import pytest

from planish.core.errors import BadInput
from planish.data import load
from planish.reproduce import table
from planish.reproduce.estimate import TEST, TRAIN
from planish.reproduce.scales import SCALES, Scale, images_judged, scale_of, scaled, scaled_attack
from planish.runs.config import DataOptions, Experiment, Named
from planish.training.settings import Settings

CUT = Scale("cpu", images=100, epochs=5, batch_size=64, width_divisor=4, blocks_divisor=4, side=64, precision="bf16")


@pytest.mark.parametrize(
    ("model", "smaller"),
    [
        (Named("preact-resnet-18"), Named("preact-resnet-18", {"width": 16})),
        (Named("vgg-11"), Named("vgg-11", {"width": 16})),
        (Named("wide-resnet-28-8", {"activation": "softplus"}), Named("wide-resnet-10-2", {"activation": "softplus"})),
        (Named("wide-resnet-40-8"), Named("wide-resnet-16-2")),
        (Named("resnext-34-2-32"), Named("resnext-16-2-8")),
        (Named("resnet-152", {"size": 224}), Named("resnet-18", {"size": 32, "width": 16})),
        (Named("small-cnn", {"width": 3}), Named("small-cnn", {"width": 1})),
        (Named("own.py:net"), Named("own.py:net")),
    ],
)
def test_networks(model: Named, smaller: Named):
    assert scaled(Experiment(model=model), CUT).model == smaller


def test_the_rest():
    data = DataOptions("cifar10", resolutions=((0.0, 128), (0.5, 224)))
    cut = scaled(Experiment(data=data, settings=Settings(epochs=30, batch_size=256)), CUT, "elsewhere")
    assert cut.data == DataOptions("elsewhere", limit=100, size=64)
    assert (cut.settings.epochs, cut.settings.batch_size, cut.settings.precision) == (5, 64, "bf16")
    short = scaled(Experiment(data=DataOptions(limit=50), settings=Settings(epochs=2, batch_size=8)), CUT)
    assert (short.data.limit, short.settings.epochs, short.settings.batch_size) == (50, 2, 8)


def test_full_is_the_paper_s_own():
    whole = Experiment(data=DataOptions("cifar10"), model=Named("wide-resnet-40-8"), settings=Settings(epochs=200))
    assert scaled(whole, SCALES["full"]) == whole
    assert scaled(whole, SCALES["full"], "there").data.source == "there"


@pytest.mark.parametrize(
    ("attack", "cut"),
    [
        ("pgd-50-10", "pgd-20-1"),
        ("pgd-10-1", "pgd-10-1"),
        ("multi-targeted-200-20", "multi-targeted-20-1"),
        ("square-5000", "square-1000"),
        ("autoattack", "planish-suite"),
        ("fgsm", "fgsm"),
        ("paper-llr/fgsm-20", "paper-llr/fgsm-20"),
    ],
)
def test_attacks(attack: str, cut: str):
    assert scaled_attack(attack, SCALES["cpu"]) == cut and scaled_attack(attack, SCALES["full"]) == attack


def test_a_table_has_its_own_numbers():
    own = table("llr-table-2")
    assert scale_of(own, "cpu").images == 4000 and scale_of(own, "cpu").test_images == SCALES["cpu"].test_images
    assert images_judged(table("llr-table-3"), SCALES["full"]) == 1000 and images_judged(own, SCALES["full"]) is None
    assert "at most 4,000 training images" in scale_of(own, "cpu").words()
    with pytest.raises(BadInput, match=r"unknown scale 'cpo'\. Did you mean 'cpu'"):
        scale_of(own, "cpo")
    with pytest.raises(BadInput, match=r"\[scales.cpu\] of llr-table-2 has no key 'imagez'. Did you mean 'images'?"):
        scale_of(replace(own, scales={"cpu": {"imagez": 3}}), "cpu")


def test_an_estimate_counts_the_digits_that_there_are():
    """Issue: 1,347 and 450 of scikit-learn's usual split were counted, and planish holds 500 out for tests."""
    counts = [len(load("digits", split)) for split in ("train", "test")]
    assert counts == [TRAIN["digits"], TEST["digits"]]
