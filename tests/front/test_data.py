"""Issue 20, item 9: every public call takes images with labels in whatever holds both, and says the same of them."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import planish as pl
from planish.core.arguments import batch_of
from planish.data.images import Images
from planish.records.evaluation import save_adversarials

LINF = pl.Linf(0.1)


class Pairs(Dataset):
    """Images and labels as a user's own Dataset has them: labels are plain numbers, and something else comes along."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, at: int) -> tuple[Tensor, int, str]:
        return self.x[at], int(self.y[at]), f"{at}.png"


class Streamed(IterableDataset):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.pairs = list(zip(x, y, strict=True))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.pairs)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def y(model: nn.Module, x: Tensor) -> Tensor:
    """What the model says, but for every fourth image."""
    return (model(x).argmax(1) + (torch.arange(12) % 4 == 3)) % 3


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "Batch": pl.Batch,
    "pair": lambda x, y: (x, y),
    "list of two": lambda x, y: [x, y],
    "NumPy pair": lambda x, y: (x.double().numpy(), y.numpy()),
    "pair with labels in a list": lambda x, y: (x, y.tolist()),
    "pair with labels in int32": lambda x, y: (x, y.int()),
    "pair with labels in uint16": lambda x, y: (x, y.numpy().astype(np.uint16)),
    "TensorDataset": TensorDataset,
    "Dataset": Pairs,
    "IterableDataset": Streamed,
    "DataLoader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=5),
    "DataLoader of three": lambda x, y: DataLoader(Pairs(x, y), batch_size=5),
    "batches in a list": lambda x, y: [(x[:5], y[:5]), (x[5:], y[5:])],
    "generator of batches": lambda x, y: ((part, own) for part, own in zip(x.split(5), y.split(5), strict=True)),
    "Images": lambda x, y: Images.numbered(x, y, "abc"[: int(y.max()) + 1], "mine"),
}


def numbers(value: Any) -> Any:
    """All that a result holds but its times."""
    if isinstance(value, pl.Run):
        return numbers(value.model.state_dict())
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, np.ndarray):
        return np.nan_to_num(value, nan=-9.0, posinf=9.0).tolist()
    if isinstance(value, dict):
        return {name: numbers(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [numbers(part) for part in value]
    return value


def evaluated(record: Any) -> Any:
    return numbers((record.indices, record.labels, record.clean_margin, *(column.margin for column in record.columns)))


def audited(found: Any) -> Any:
    return [(finding.check, finding.verdict, finding.statistic) for finding in found.findings]


def trained(model: nn.Module, *given: Any, **how: Any) -> Any:
    """Fit a copy: the call takes what `Batches` would be."""
    from copy import deepcopy

    from planish.training.loop import start

    own = deepcopy(model)
    settings = pl.Settings(epochs=1, batch_size=12, schedule="constant")
    for _ in pl.fit(start(own, settings), pl.methods.Standard(), LINF, *given, settings, seed=0):
        pass
    return numbers(own.state_dict())


CALLS: dict[str, Callable[..., Any]] = {
    "evaluate": lambda m, *given: evaluated(pl.evaluate(m, *given, threat=LINF, attacks="pgd-2-1")),
    "evaluate_steps": lambda m, *given: evaluated(
        [*pl.evaluate_steps(m, *given, threat=LINF, attacks="fgsm")][-1].evaluation
    ),
    "minimum_distance": lambda m, *given: numbers(
        pl.minimum_distance(m, *given, attack="deepfool").columns[0].distance
    ),
    "attack": lambda m, *given: numbers(pl.attacks.PGD(2, 1)(m, *given, threat=LINF)),
    "distance attack": lambda m, *given: numbers(pl.attacks.DeepFool()(m, *given, threat="L2")),
    "local_linearity": lambda m, *given: numbers(pl.measures.local_linearity(m, *given, threat=LINF)),
    "gradient_norms": lambda m, *given: numbers(pl.measures.gradient_norms(m, *given, threat=LINF)),
    "loss_plane": lambda m, *given: numbers(pl.measures.loss_plane(m, *given, threat=LINF, points=3, steps=1)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("call", CALLS)
def test_issue_20_every_call_takes_what_holds_images_and_labels(
    call: str, form: str, model: nn.Module, x: Tensor, y: Tensor
):
    wanted = CALLS[call](model, x, y)
    assert CALLS[call](model, FORMS[form](x, y)) == wanted
    assert CALLS[call](model, FORMS[form](x, y), None) == wanted


@pytest.mark.parametrize("form", ["pair", "Dataset", "DataLoader", "Images"])
def test_issue_20_the_audit_and_verify_take_them_too(form: str, model: nn.Module, x: Tensor, y: Tensor, tmp_path: Path):
    made = FORMS[form]
    steps = pl.audit_steps(model, made(x, y), threat=LINF)
    wanted = pl.audit_steps(model, x, y, LINF)
    assert [audited(next(steps)) for _ in range(3)][-1] == [audited(next(wanted)) for _ in range(3)][-1]
    save_adversarials(x.numpy(), np.arange(12), tmp_path / "kept.npz")
    found = pl.verify(model, made(x, y), path=tmp_path / "kept.npz", threat=LINF)
    assert found == pl.verify(model, x, y, tmp_path / "kept.npz", LINF)


def test_issue_20_every_measure_takes_them(model: nn.Module, x: Tensor, y: Tensor):
    """Those of the table need more than a threat; each takes its images at the one place."""
    import inspect

    from planish.audit.measures import calls

    made = [name for name, part in vars(calls).items() if callable(part) and hasattr(part, "__signature__")]
    assert len(made) >= 15
    for name in made:
        assert [*inspect.signature(getattr(pl.measures, name)).parameters][:3] == ["model", "x", "labels"]
        with pytest.raises(pl.BadInput, match="pixels lie in"):
            getattr(pl.measures, name)(model, DataLoader(TensorDataset(9 * x, y)))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "list of two"])
def test_issue_20_training_takes_them(form: str, model: nn.Module, x: Tensor, y: Tensor):
    """In memory all are the same; batches that the caller makes are trained on as they come."""
    how: dict[str, Any] = {"method": "standard", "threat": LINF, "epochs": 2, "seed": 1}
    wanted, found = (numbers(pl.train("small-cnn", data, **how)) for data in ((x, y), FORMS[form](x, y)))
    loaded = form in ("DataLoader", "DataLoader of three", "batches in a list")
    assert (found == wanted) != loaded


def test_issue_20_fit_takes_them(model: nn.Module, x: Tensor, y: Tensor):
    wanted = trained(model, pl.Batch(x, y))
    for form in ("pair", "NumPy pair", "TensorDataset", "Dataset", "Images"):
        assert trained(model, FORMS[form](x, y)) == wanted, form


def test_a_loader_is_trained_on_anew_each_epoch(x: Tensor, y: Tensor, model: nn.Module):
    """With its own transforms: an image is not frozen as it came first."""
    seen: list[float] = []

    class Shifted(Pairs):
        def __getitem__(self, at: int) -> tuple[Tensor, int, str]:
            seen.append(float(torch.rand(())))
            return super().__getitem__(at)

    loader = DataLoader(Shifted(x, y), batch_size=6, shuffle=True)
    before = torch.get_rng_state()
    run = pl.train(model, loader, method="standard", threat=LINF, epochs=2)
    assert torch.equal(before, torch.get_rng_state())
    assert len(run.history) == 2 and len(seen) == 6 + 2 * 12 and len({*seen}) > 12
    assert run.about["classes"] == ["0", "1", "2"]


WRONG: list[tuple[Callable[[Tensor, Tensor], Any], str]] = [
    (lambda x, y: "digits", r"images x must be a tensor or a NumPy array, a DataLoader or a Dataset, not 'digits'"),
    (lambda x, y: 5, "images x must be a tensor .*, not 5"),
    (lambda x, y: x, "labels are missing: give one whole number for each image"),
    (lambda x, y: [], r"\[\] yields no images"),
    (lambda x, y: [{"image": x}], "a loader must yield pairs of images and labels, not a dict"),
    (lambda x, y: DataLoader(x), "a loader must yield pairs of images and labels, not a Tensor"),
    (lambda x, y: TensorDataset(x), "a loader must yield pairs of images and labels, not"),
    (lambda x, y: (x, y.float()), "labels must be whole numbers"),
    (lambda x, y: ((255 * x).byte(), y), "divide by 255"),
    (lambda x, y: ((x, y), y), "labels"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=range(len(WRONG)))
def test_what_holds_no_images_and_labels_is_told(
    make: Callable[[Tensor, Tensor], Any], message: str, model: nn.Module, x: Tensor, y: Tensor
):
    with pytest.raises(pl.BadInput, match=message) as raised:
        pl.evaluate(model, make(x, y), threat=LINF, attacks="fgsm")
    assert "\n" not in str(raised.value)


def test_a_dataset_of_pictures_says_that_tensors_are_needed(model: nn.Module):
    from PIL import Image

    class Pictures(Pairs):
        def __getitem__(self, at: int) -> Any:
            return Image.new("L", (4, 4)), 0

    with pytest.raises(pl.BadInput, match=r"gives no pairs \(image as a tensor, label\)"):
        pl.evaluate(model, Pictures(torch.zeros(3), torch.zeros(3)), threat=LINF, attacks="fgsm")


def test_labels_beside_what_holds_them_are_refused(x: Tensor, y: Tensor):
    for form in ("Batch", "pair", "TensorDataset", "DataLoader", "Images"):
        with pytest.raises(pl.BadInput, match="holds its labels already: give None for the labels"):
            batch_of(FORMS[form](x, y), y)


def test_arrays_in_any_byte_order_and_direction_are_read(x: Tensor, y: Tensor, model: nn.Module):
    """Big-endian ones were no "NumPy array", and radii from the last to the first ended in a ValueError."""
    found = batch_of(x.numpy().astype(">f4"), y.numpy().astype(">i8"))
    assert torch.equal(found.x, x) and torch.equal(found.labels, y)
    radii = np.linspace(0, 0.1, 12)[::-1]
    own, copied = (pl.evaluate(model, x, y, threat=("Linf", given), attacks="fgsm") for given in (radii, radii.copy()))
    assert own.meta["threat"] == copied.meta["threat"]
    with pytest.raises(pl.BadInput, match=r"a NumPy array of a type that PyTorch has, not an array of object"):
        batch_of(x.numpy().astype(object), y)


def test_a_list_of_two_images_is_two_images(x: Tensor):
    assert batch_of([x[0].numpy(), x[1].numpy()], [0, 1]).x.shape == (2, 1, 4, 4)


def test_a_loader_of_unknown_length_is_not_trained_on(x: Tensor, y: Tensor, model: nn.Module):
    with pytest.raises(pl.BadInput, match="a loader must know how many batches it has, and a DataLoader does not"):
        pl.train(model, DataLoader(Streamed(x, y), batch_size=6), method="standard", threat=LINF)


def test_reading_a_shuffled_loader_moves_no_random_state(x: Tensor, y: Tensor):
    read = partial(batch_of, DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True))
    before = torch.get_rng_state()
    assert torch.equal(read().x, read().x) and torch.equal(before, torch.get_rng_state())


def test_what_is_no_tensor_goes_to_the_model_s_device(x: Tensor, y: Tensor):
    """Tensors stay where their owner put them."""
    away = nn.Linear(1, 1, device="meta")
    for form, make in FORMS.items():
        if form not in (
            "Batch",
            "pair",
            "list of two",
            "pair with labels in a list",
            "pair with labels in int32",
            "pair with labels in uint16",
        ):
            found = batch_of(make(x, y), None, away)
            assert {part.device.type for part in found[:3]} == {"meta"}, form
    assert batch_of(x.numpy(), y, away).labels.device.type == "meta"
    assert batch_of((x, y), None, away).x.device.type == batch_of(x, y, away).x.device.type == "cpu"
