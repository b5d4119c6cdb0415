"""An ONNX file read by onnxruntime itself, against the network that it was made from; skipped where it is missing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from planish.cli.main import app
from planish.core.errors import BadInput
from planish.models import BlackBox
from planish.models.onnx import load_onnx

pytestmark = pytest.mark.packages("onnx", "onnxruntime")


def exported(model: nn.Sequential, path: Path, batch: int | str, beside: bool = False) -> Path:
    """Write Flatten, Linear, ReLU, Linear as an ONNX file for images (batch, 1, 8, 8), its weights in it or beside."""
    import onnx

    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    first, second = model[1], model[3]
    stored = {"w1": first.weight, "b1": first.bias, "w2": second.weight, "b2": second.bias}
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["hidden"], transB=1),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", float32, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", float32, [batch, 10])],
        [onnx.numpy_helper.from_array(value.detach().numpy(), name) for name, value in stored.items()],
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    place = {"save_as_external_data": True, "location": f"{path.name}.data", "size_threshold": 0} if beside else {}
    onnx.save(whole, path, **place)
    return path


@pytest.fixture
def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.mark.parametrize("batch", ["n", 4], ids=["any", "fixed"])
def test_logits_are_the_network_s(batch: int | str, network: nn.Sequential, tmp_path: Path):
    x: Tensor = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found = load_onnx(exported(network, tmp_path / "net.onnx", batch))
    assert isinstance(found, BlackBox) and found.function.fixed == (None if batch == "n" else 4)
    torch.testing.assert_close(found(x), network(x).detach(), rtol=1e-4, atol=1e-5)


def test_weights_beside_the_file(network: nn.Sequential, tmp_path: Path):
    """Issue: files of torch.onnx.export, whose weights lie in FILE.onnx.data, were "not an ONNX model"."""
    x: Tensor = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    path = exported(network, tmp_path / "nét 1.onnx", "n", beside=True)
    first = load_onnx(path)
    torch.testing.assert_close(first(x), network(x).detach(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        network[3].weight.add_(1)
    other = load_onnx(exported(network, path, "n", beside=True))
    assert not torch.equal(first.digest, other.digest)
    (tmp_path / "nét 1.onnx.data").unlink()
    with pytest.raises(BadInput, match="is not an ONNX model that onnxruntime reads"):
        load_onnx(path)


def test_a_truncated_file_is_one_line(network: nn.Sequential, tmp_path: Path):
    path = exported(network, tmp_path / "net.onnx", "n")
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(BadInput, match="is not an ONNX model that onnxruntime reads"):
        load_onnx(path)


def test_it_is_audited_as_a_black_box(network: nn.Sequential, tmp_path: Path):
    path = exported(network, tmp_path / "net.onnx", "n")
    arguments = ["audit", str(path), "--data", "digits", "--radius", "0.1", "--limit", "40", "-q"]
    found = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert found.exit_code in (0, 1), found.output
    text = (tmp_path / "out" / "audit.md").read_text()
    assert "black box" in text and (tmp_path / "out" / "audit.html").exists()
