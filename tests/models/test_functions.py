"""Functions as models: of tensors with their gradients, and of arrays, which are judged without."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import planish as pl
from planish.models import BlackBox, Function, Normalized

CENTRES = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
X = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def of_tensors(x: Tensor) -> Tensor:
    return -(x.reshape(len(x), 1, -1) - CENTRES.to(x)).square().sum(2)


def of_arrays(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """In float64, as many programs answer."""
    assert x.dtype == np.float32
    return -np.square(x.reshape(len(x), 1, -1) - CENTRES.double().numpy()).sum(2)


LABELS = of_tensors(X).argmax(1)


class Written(nn.Module):
    """The same as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return of_tensors(x)


def test_a_function_of_tensors_is_judged_as_the_module_it_could_be():
    found, own = (
        pl.evaluate(model, X, LABELS, "Linf:0.1", attacks="pgd-5-1") for model in (Function(of_tensors), Written())
    )
    assert np.array_equal(found.x_adv, own.x_adv) and 0 < found.survivors().sum() < 12
    assert found.remarks() == [], "it was not left in training mode: it has none"


@pytest.mark.parametrize(
    "model", [BlackBox(of_arrays), Normalized(BlackBox(of_arrays), (0.0,), (1.0,))], ids=["bare", "inside"]
)
def test_a_function_of_arrays_is_judged_without_gradients(model: nn.Module):
    found = pl.evaluate(model, X, LABELS, "Linf:0.2", attacks="noise-5,square-200")
    exact = pl.evaluate(Written(), X, LABELS, "Linf:0.2", attacks="pgd-20-2")
    assert exact.survivors().sum() <= found.survivors().sum() < 12
    assert torch.equal(model(torch.from_numpy(found.x_adv)).argmax(1) == LABELS, torch.from_numpy(found.survivors()))
    for attacks in ("planish-suite", "noise-5,pgd-5-1", "autoattack"):
        with pytest.raises(
            pl.BadInput, match=r"^the model is a black box and .* asks for gradients; use noise, square"
        ):
            pl.evaluate(model, X, LABELS, "Linf:0.2", attacks=attacks)


def test_a_function_of_arrays_is_audited_without_gradients():
    found = pl.audit(BlackBox(of_arrays), X, LABELS, "Linf:0.2")
    assert found.meta["black_box"] and found.finding("gradient").verdict == "open"
    assert found.verdict != "fail" and found.finding("deterministic").verdict == "pass"


def test_a_function_alone_is_told_how_it_becomes_a_model():
    with pytest.raises(pl.BadInput, match=r"; planish\.models\.Function makes one of a function of tensors"):
        pl.evaluate(of_tensors, X, LABELS, "Linf:0.1")  # type: ignore[arg-type]


def test_an_attack_without_a_gradient_is_told_below_the_table():
    """Issue: print(evaluation) and notebooks said 100 % robust and kept the remark to themselves."""

    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return of_tensors(x.detach())

    found = pl.evaluate(Cut().eval(), X, LABELS, "Linf:0.001", attacks="pgd-5-1")
    remark = "pgd-5-1 had no gradient on 12 of 12 images: that they are not broken says nothing"
    assert str(found).splitlines()[-1].startswith(f"note: {remark}")
    assert f"<p>note: {remark}" in found._repr_html_()
