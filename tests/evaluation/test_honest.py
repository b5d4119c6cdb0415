"""What an evaluation says of models that only look robust, or only look strange: a number or a remark."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import planish as pl
from planish.attacks.transfer import Surrogate
from planish.core.batch import Batch
from planish.core.errors import BadInput
from planish.records.evaluation import Evaluation

CLASSES, RADIUS = 4, 0.3


class Through(nn.Module):
    """A network with something before and after it."""

    def __init__(self, network: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.network(self.before(x)))


def same(x: Any) -> Any:
    return x


def through(before: Callable[[Tensor], Tensor] = same, after: Callable[[Tensor], Any] = same) -> Callable[..., Through]:
    return lambda network: Through(network, before, after).eval()


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)).eval()


@pytest.fixture
def images(net: nn.Module) -> Batch:
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return Batch(x, net(x).argmax(1))


def judged(
    model: nn.Module, images: Batch, attacks: Any = "pgd-20-1", radius: float = RADIUS, **options: Any
) -> Evaluation:
    return pl.evaluate(model, images, threat=pl.Linf(radius), attacks=attacks, **options)


def hits(record: Evaluation) -> int:
    return record.robust_accuracy().hits


def told(record: Any, *words: str) -> bool:
    return any(all(word in remark for word in words) for remark in record.remarks())


# --- no gradient ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["pgd-20-1", "apgd-t-5", "fab-t-5", "square-50", "scout"])
def test_inference_mode_is_left(attack: str, net: nn.Module, images: Batch):
    attack = "planish-suite" if attack == "scout" else attack
    expected = judged(net, images, attack)
    with torch.inference_mode():
        some = Batch(*(part.clone() for part in images[:3]))
        found = judged(net, some, attack)
    assert hits(found) == hits(expected) and found.remarks() == expected.remarks()


def test_distances_and_attacks_leave_inference_mode(net: nn.Module, images: Batch):
    expected = pl.minimum_distance(net, images, None, "L2", "ddn-20")
    one = pl.attacks.PGD(5, 1)(net, images, None, "Linf:0.3")
    with torch.inference_mode():
        x, labels = images.x.clone(), images.labels.clone()
        assert np.array_equal(pl.minimum_distance(net, x, labels, "L2", "ddn-20").of(), expected.of())
        assert torch.equal(pl.attacks.PGD(5, 1)(net, x, labels, "Linf:0.3").x_adv, one.x_adv)


FLAT: dict[str, Callable[[nn.Module], nn.Module]] = {
    "detached": through(after=lambda logits: logits.detach()),
    "numpy": through(after=lambda logits: torch.from_numpy(logits.detach().numpy())),
    "rounded": through(before=lambda x: (x * 8).round() / 8),
    "no_grad": through(after=torch.no_grad()(lambda logits: logits.clone())),
}


def test_an_image_without_a_distance_in_inference_mode(net: nn.Module, images: Batch):
    """Whether it has a gradient was asked inside inference mode, and ended in a RuntimeError."""
    model = FLAT["rounded"](net)
    with torch.no_grad():
        own = images._replace(labels=model(images.x).argmax(1))
    expected = pl.minimum_distance(model, own, None, "Linf", "deepfool-2")
    with torch.inference_mode():
        found = pl.minimum_distance(model, own, None, "Linf", "deepfool-2")
    assert found.not_found() == expected.not_found() > 0 and found.remarks() == expected.remarks()


@pytest.mark.parametrize("kind", FLAT)
@pytest.mark.parametrize("attack", ["pgd-20-1", "apgd-t-5", "fgsm", "pgd-margin-5-1"])
def test_no_gradient_is_told(kind: str, attack: str, net: nn.Module, images: Batch):
    model = FLAT[kind](net)
    with torch.no_grad():
        own = images._replace(labels=model(images.x).argmax(1))
    record = judged(model, own, attack)
    if kind == "no_grad":
        model = FLAT["detached"](net)
    assert hits(record) > 0 and told(record, f"{attack} had no gradient on ", "noise, square or boundary")
    assert set(record.columns[0].meta["no_gradient"]) <= set(range(40))


def test_stages_of_a_suite_repeat_no_remark(net: nn.Module, images: Batch):
    """Each of a suite's fifteen stages said the same of a model without a gradient: the remark filled the screen."""
    own = Batch(images.x[:4], images.labels[:4])
    record = judged(FLAT["detached"](net), own, ["planish-suite", "pgd-5-1"], radius=0.05)
    flat = [remark for remark in record.remarks() if "had no gradient" in remark]
    assert [remark.split(" ")[0] for remark in flat] == ["planish-suite/scout", "pgd-5-1"]
    stages = [name.partition("/")[2] for name in record.names if record.column(name).meta.get("no_gradient")]
    assert len(stages) > 5 and flat[0].endswith(f"The same, of other numbers, holds of {', '.join(stages[1:-1])}.")
    assert sum("ran its long stages" in remark for remark in record.remarks()) == 1
    assert told(record, "ran its stage search, because noise and random search came nearer"), (
        "it was called the long ones"
    )


def test_an_underflowing_loss_is_told(net: nn.Module, images: Batch):
    sharp = through(after=lambda logits: 1e4 * logits)(net)
    for attack in ("pgd-20-1", "apgd-ce-10", "mi-fgsm", "adam-pgd-5-1"):
        record = judged(sharp, images, attack)
        assert hits(record) > 0 and told(record, f"{attack} had no gradient on", "the loss underflows", "pgd-margin")
    assert not told(judged(sharp, images, "pgd-margin-20-1"), "gradient")
    distances = pl.minimum_distance(sharp, images, None, "L2", "ddn-20")
    assert distances.not_found() > 0 and told(distances, "ddn-20 had no gradient on", "the loss underflows")


def test_distances_without_a_gradient_are_told(net: nn.Module, images: Batch):
    flat = FLAT["detached"](net)
    record = pl.minimum_distance(flat, images, None, "L2", ["deepfool-5", "boundary-50"])
    assert told(record, "deepfool-5 had no gradient on 40 of 40") and not told(record, "boundary-50")


def test_a_surrogate_without_a_gradient_is_told(net: nn.Module, images: Batch):
    record = judged(net, images, "transfer-5", surrogates={"flat": FLAT["detached"](net)})
    assert told(record, "transfer-5 had no gradient on")
    assert not told(judged(net, images, "transfer-5", surrogates={"same": deepcopy(net)}), "gradient")


def test_honest_models_are_told_nothing(net: nn.Module, images: Batch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        deep = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, CLASSES)).eval()
    for model in (net, deep):
        for attack in ("pgd-10-1", "apgd-t-5", "noise", "square-20", "planish-suite"):
            assert (
                judged(model, images, attack, radius=0.02).remarks() == judged(model, images, [], radius=0.1).remarks()
            )


# --- no finite answer -----------------------------------------------------------------------------------------------


def poisoned(value: float) -> Callable[[nn.Module], nn.Module]:
    """Wrong answers become this value, so that no attack sees them."""

    def after(logits: Tensor) -> Tensor:
        return torch.where((logits.softmax(1).amax(1) < 0.45)[:, None], torch.full_like(logits, value), logits)

    return through(after=after)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("attack", ["pgd-20-1", "square-200", "fab-t-10", "pgd-bisection"])
def test_no_finite_answer_is_broken(value: float, attack: str, net: nn.Module, images: Batch):
    model = poisoned(value)(through(after=lambda logits: 3 * logits)(net))
    finite = torch.isfinite(model(images.x)).all(1)
    some = images.select(finite.nonzero().squeeze(1))
    assert len(some.x) >= 5
    record = judged(model, some, attack, radius=0.6)
    assert hits(record) == 0 and told(record, attack, "no finite answer") and not told(record, "The model")


def test_saved_images_without_a_finite_answer_are_broken(net: nn.Module, images: Batch, tmp_path: Path):
    model = poisoned(float("nan"))(through(after=lambda logits: 3 * logits)(net))
    some = images.select(torch.isfinite(model(images.x)).all(1))
    record = judged(model, some, radius=0.6)
    record.save_adversarials(tmp_path / "images.npz")
    assert pl.verify(model, some, None, tmp_path / "images.npz", "Linf:0.6").robust.hits == hits(record) == 0


# --- random, batch-dependent, remembering ---------------------------------------------------------------------------


def noisy(size: float) -> Callable[[nn.Module], nn.Module]:
    return through(before=lambda x: x + size * torch.randn_like(x))


def batch_normalised(network: nn.Module) -> nn.Module:
    return through(before=lambda x: (x - x.mean()) / x.std() * 0.3 + 0.5)(network)


def test_random_models_are_told_and_eot_judges_them(net: nn.Module, images: Batch, tmp_path: Path):
    model = noisy(0.3)(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert told(judged(model, images, radius=0.1), "The model is random", "--eot 20")
        record = judged(model, images, "pgd-10-1", radius=0.1, eot=20)
        record.save_adversarials(tmp_path / "images.npz")
        again = pl.verify(model, images, None, tmp_path / "images.npz", "Linf:0.1", eot=20).robust
    assert not told(record, "random") and told(record, "20 draws judge an image")
    assert record.robust_accuracy().low <= again.value <= record.robust_accuracy().high
    (column,) = record.columns
    wrong, robust = np.array(column.meta["eot"]["wrong"]), ~column.broken[column.attempted]
    assert column.meta["eot"]["draws"] == 20 and (robust == (wrong <= 5)).all()


def test_eot_of_a_model_that_is_not_random_changes_no_verdict(net: nn.Module, images: Batch):
    once, often = judged(net, images), judged(net, images, eot=np.int64(4))
    assert np.array_equal(once.columns[0].broken, often.columns[0].broken)
    assert (
        often.columns[0].forwards == 4 * once.columns[0].forwards
        and (often.column("pgd-20-1").passes % 4 == 0)[often.column("pgd-20-1").attempted].all()
    )
    for wrong in (0, 2, 3, True, "5"):
        with pytest.raises(BadInput, match=r"^eot must be 1, or at least 4 draws"):
            judged(net, images, eot=wrong)


def test_models_that_look_at_the_batch_are_told(net: nn.Module, images: Batch):
    assert told(judged(batch_normalised(net), images), "looks at the whole batch")


class Remembering(nn.Module):
    """Answers near images that it has seen as it did then; or otherwise from its n-th call on."""

    def __init__(self, network: nn.Module, calls: int | None = None) -> None:
        super().__init__()
        self.network, self.calls, self.asked = network, calls, 0
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        if self.calls is not None:
            return self.network(x) if self.asked <= self.calls else self.network(x).roll(1, 1)
        rows = []
        for one in x:
            near = [logits for image, logits in self.seen if (image - one).abs().max().item() <= 0.31]
            rows.append(near[0] if near else self.network(one[None])[0])
            if not near:
                self.seen.append((one.detach(), rows[-1].detach()))
        return torch.stack(rows)


@pytest.mark.parametrize("calls", [None, 6])
def test_models_that_remember_are_told(calls: int | None, net: nn.Module, images: Batch):
    record = judged(Remembering(net, calls), images.select(slice(0, 12)), "pgd-5-1")
    assert told(record, "The model remembers")


def test_distances_of_strange_models_are_told(net: nn.Module, images: Batch):
    some = images.select(slice(0, 12))
    for model, words in (
        (noisy(0.3)(net), "The model is random"),
        (batch_normalised(net), "looks at the whole batch"),
        (Remembering(net), "The model remembers"),
    ):
        assert told(pl.minimum_distance(model, some, None, "L2", ["ddn-2", "deepfool-2"]), words)
    assert pl.minimum_distance(net, some, None, "L2", "deepfool-2").remarks() == []


def test_a_model_that_cannot_be_copied_is_judged(net: nn.Module, images: Batch):
    model = Through(net, same, same).eval()
    model.lock = (line for line in ())  # a generator cannot be copied
    record = judged(model, images)
    assert hits(record) == hits(judged(net, images)) and told(record, "The model cannot be copied")


def test_guards_cost_five_forwards_of_one_image_in_64(net: nn.Module, images: Batch):
    asked: list[int] = []
    model = through(before=lambda x: asked.append(len(x)) or x)(net)
    many = Batch(images.x.repeat(32, 1, 1, 1), images.labels.repeat(32))
    record = judged(model, many, "pgd-20-1", radius=0.001)
    spent = sum(asked) - len(many.x) - record.columns[0].forwards
    assert spent == record.meta["guards"]["forwards"] == 5 * 20


# --- dtypes, outputs, in place --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_dtype_is_judged(dtype: torch.dtype, given: torch.dtype, net: nn.Module, images: Batch):
    own = images._replace(x=images.x.to(torch.bfloat16).to(given))
    model = deepcopy(net).to(dtype)
    for attack in ("pgd-10-1", "apgd-t-5", "fab-t-5", "square-20"):
        expected, found = judged(net, own, attack, 0.1), judged(model, own, attack, 0.1)
        assert abs(hits(expected) - hits(found)) <= (0 if dtype == torch.float64 else 2)
    assert pl.minimum_distance(model, own, None, "L2", "ddn-10").not_found() == 0
    assert pl.attacks.PGD(5, 1)(model, own, None, "Linf:0.1").success.any()


def test_a_tiny_float64_margin_keeps_its_sign(images: Batch):
    class Close(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            tiny = torch.full((len(x), 1), 1e-60, dtype=torch.float64)
            return torch.cat([tiny, 0 * tiny], 1) + self.weight * x.flatten(1)[:, :1]

    own = images._replace(labels=torch.zeros_like(images.labels))
    assert hits(judged(Close(), own, "noise-2")) == 40


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (lambda z: {"logits": z}, ""),
        (lambda z: (z, z), r"the model returns a tuple; .* wrap it in a module that returns model\(x\)\[0\]"),
        (lambda z: {"scores": z}, "the model returns a dict; it must return logits"),
        (lambda z: z.numpy(), "the model returns a ndarray; it must return logits"),
        (lambda z: z[:, :1], "the model must return logits .* make two logits: torch.stack"),
        (lambda z: z[:, 0], "the model must return logits .* make two logits: torch.stack"),
        (lambda z: z.argmax(1), "the model must return logits .*one_hot.* noise, square and boundary"),
        (
            lambda z: z.softmax(1),
            "the model returns probabilities; give logits: leave its softmax out, .* return their log",
        ),
    ],
)
def test_outputs(after: Callable[[Tensor], Any], message: str, net: nn.Module, images: Batch, tmp_path: Path):
    model = through(after=after)(net)
    if not message:
        assert hits(judged(model, images)) == hits(judged(net, images))
        assert pl.minimum_distance(model, images, None).not_found() == 0
        record = judged(model, images)
        record.save_adversarials(tmp_path / "images.npz")
        assert pl.verify(model, images, None, tmp_path / "images.npz", "Linf:0.3").robust.hits == hits(record)
        assert pl.attacks.PGD(5, 1)(model, images, None, "Linf:0.3").success.any()
        return
    for call in (judged, lambda model, images: pl.minimum_distance(model, images, None)):
        with pytest.raises(BadInput, match=f"^{message}"):
            call(model, images)


@pytest.mark.parametrize("attack", ["pgd-10-1", "apgd-t-5", "fab-t-5", "square-20", "transfer-5"])
def test_a_model_that_writes_into_its_images(attack: str, net: nn.Module, images: Batch):
    spoiling, honest = through(before=lambda x: x.sub_(0.5))(net), through(before=lambda x: x - 0.5)(net)
    kept = images.x.clone()
    with torch.no_grad():
        own = images._replace(labels=honest(images.x).argmax(1))
    found, expected = (
        judged(model, own, attack, surrogates={"own": deepcopy(model)} if attack == "transfer-5" else ())
        for model in (spoiling, honest)
    )
    assert torch.equal(images.x, kept)
    assert np.array_equal(found.columns[0].margin, expected.columns[0].margin, equal_nan=True)
    one, other = (pl.minimum_distance(model, own, None, "L2", "ddn-10") for model in (spoiling, honest))
    assert np.array_equal(one.of(), other.of()) and torch.equal(images.x, kept)


@pytest.mark.parametrize(
    "labels",
    [
        lambda y: y.to(torch.int32),
        lambda y: y.to(torch.uint8),
        lambda y: y.numpy().astype(np.int16),
        lambda y: y.tolist(),
    ],
)
def test_labels_of_any_whole_number_type(labels: Callable[[Tensor], Any], net: nn.Module, images: Batch):
    expected = hits(judged(net, images))
    x = (images.x.clone().requires_grad_() * 1).clamp(0, 1)
    assert hits(pl.evaluate(net, x, labels(images.labels), "Linf:0.3", "pgd-20-1")) == expected
    assert hits(pl.evaluate(net, images.x.numpy(), labels(images.labels), "Linf:0.3", "pgd-20-1")) == expected
    if isinstance(labels(images.labels), Tensor):
        assert hits(judged(net, images._replace(x=x, labels=labels(images.labels)))) == expected


class Extra(nn.Module):
    """A network with state that is no plain tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("sparse", torch.eye(3).to_sparse())

    def get_extra_state(self) -> dict[str, Any]:
        return {"names": ["a", "b"], "scale": torch.ones(2)}

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def test_state_that_is_no_tensor(net: nn.Module, images: Batch):
    record, again = judged(Extra(net).eval(), images), judged(Extra(net).eval(), images)
    assert hits(record) == hits(judged(net, images))
    assert record.meta["model"]["digest"] == again.meta["model"]["digest"]
    assert pl.minimum_distance(Extra(net).eval(), images, None).not_found() == 0


def test_hard_labels(net: nn.Module, images: Batch):
    """As the message says: one-hot answers, attacked without a gradient; a gradient attack says that it had none."""
    model = through(after=lambda z: nn.functional.one_hot(z.argmax(1), CLASSES) - 0.5)(net)
    assert hits(judged(model, images, "square-200")) < 40 and not told(judged(model, images, "square-20"), "gradient")
    assert told(judged(model, images, "pgd-5-1"), "pgd-5-1 had no gradient on")


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model(net: nn.Module, images: Batch):
    model = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    record = judged(model, images)
    assert told(record, "had no gradient on") and told(record, "looks at the whole batch")  # one scale for all images
    assert record.meta["model"]["digest"] != judged(net, images).meta["model"]["digest"]


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model(net: nn.Module, images: Batch):
    compiled = torch.compile(net, backend="eager")
    assert hits(judged(compiled, images)) == hits(judged(net, images))
    assert pl.minimum_distance(compiled, images, None).not_found() == 0


def test_an_exported_model(net: nn.Module, images: Batch):
    batch = torch.export.Dim("batch", min=1, max=4096)
    exported = torch.export.export(net, (images.x,), dynamic_shapes=({0: batch},)).module()
    assert hits(judged(exported, images)) == hits(judged(net, images))


# --- classes come from logits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["apgd-t-20", "fab-t-20", "multi-targeted-20-1", "planish-suite"])
@pytest.mark.parametrize("present", [1, 2])
def test_logits_decide_on_the_classes(attack: str, present: int, net: nn.Module, images: Batch):
    some = images.select(images.labels < present)
    record = judged(net, some, attack, radius=0.4, about={"data": {"classes": ["a", "b"][:present]}})
    assert hits(record) == 0 and told(record, f"the data name {present} classes, the model has 4")


def test_surrogates_have_digests(net: nn.Module):
    assert Surrogate.of("a", net).digest == Surrogate.of("b", deepcopy(net)).digest
