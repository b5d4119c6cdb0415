"""Issue 24: runs go to the Hugging Face Hub and come back, by its own library, which talks to a Hub of these tests."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from fake_hub import Hub, serving
from torch import nn

import planish as pl
from planish.core.errors import BadInput
from planish.records.evaluation import Evaluation, save
from planish.runs.hub import address_of, fetched
from planish.runs.judge import load_model
from planish.runs.run import Run, save_weights

pytestmark = pytest.mark.packages("huggingface_hub")
REPO = "some.one/tiny-seat"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a second."""
    folder = tmp_path_factory.mktemp("hub") / "run"
    settings = pl.Settings(batch_size=64, learning_rate=0.05)
    data = "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        pl.train("small-cnn", data, method="seat", threat="Linf:0.1", epochs=1, settings=settings, out=folder)
    return pl.load_run(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as found:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.address)
        place = f"{found.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", place)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
        yield found


@pytest.fixture(scope="module")
def judged(run: Run) -> Evaluation:
    x = pl.data.load("digits", "test", limit=40).as_batch()
    return pl.evaluate(run.model, x, threat="Linf:0.1", attacks="pgd-3-1", about={"data": {"name": "digits"}})


def test_a_run_goes_and_comes_back(run: Run, hub: Hub, judged: Evaluation):
    assert run.push_to_hub(REPO, [judged], private=True) == f"hf://{REPO}"
    files = hub.repositories[REPO]
    assert files.keys() == {"README.md", "config.toml", "metrics.jsonl", "model.safetensors"}
    assert hub.made[0].get("visibility") == "private" or hub.made[0]["private"] is True  # of older libraries
    back = pl.load_run(f"hf://{REPO}@main")
    assert all(
        torch.equal(one, other) for one, other in zip(back.model.parameters(), run.model.parameters(), strict=True)
    )
    assert (back.config, back.history, back.about) == (run.config, run.history, run.about)
    found = load_model(f"hf://{REPO}")
    assert found.name == "tiny-seat" and not found.model.training


def test_the_card_is_filled_in(run: Run, hub: Hub, judged: Evaluation):
    run.push_to_hub(REPO, [judged])
    _, head, text = hub.repositories[REPO]["README.md"].decode().split("---\n", 2)
    about = yaml.safe_load(head)
    assert about["library_name"] == "planish" and about["pipeline_tag"] == "image-classification"
    (index,) = about["model-index"]
    values = [metric["value"] for metric in index["results"][0]["metrics"]]
    clean, robust = judged.clean_accuracy().value, judged.robust_accuracy().value
    assert index["name"] == "tiny-seat" and values == pytest.approx([clean, robust], abs=1e-6)
    assert "A small-cnn for 10 classes, trained by seat against Linf radius 0.1 on digits." in text
    assert f'planish.load_run("hf://{REPO}")' in text and f"{100 * robust:.1f}%" in text


def test_a_library_s_network_is_no_code_of_one_s_own(run: Run, hub: Hub):
    """Issue: the card of a network of torchvision said that its code is not here, and asked for built_by."""
    model = {"name": "torchvision:resnet18", "options": {}}
    replace(run, about={**run.about, "model": model}).push_to_hub(REPO)
    text = hub.repositories[REPO]["README.md"].decode()
    assert "code that is not here" not in text and f'planish.load_run("hf://{REPO}").model' in text


def test_the_card_of_the_best_epoch_loads_the_best_epoch(run: Run, hub: Hub, tmp_path: Path):
    """Issue: the card showed what the best weights reach, and its lines loaded the last ones."""
    folder = shutil.copytree(str(run.folder), tmp_path / "run")
    tensors = {name: value + 1 for name, value in run.model.state_dict().items()}
    best = pl.load_run(folder).model
    best.load_state_dict(tensors)
    save_weights(folder / "model-best.safetensors", best, {**run.about, "epoch": 0})
    pl.load_run(folder, best=True).push_to_hub(REPO)
    text = hub.repositories[REPO]["README.md"].decode()
    assert f'planish.load_run("hf://{REPO}", best=True).model' in text and "its weights of epoch 0" in text
    back = pl.load_run(f"hf://{REPO}", best=True)
    assert torch.equal(next(back.model.parameters()), next(best.parameters()))
    pl.load_run(folder).push_to_hub(REPO)
    assert f'planish.load_run("hf://{REPO}").model' in hub.repositories[REPO]["README.md"].decode()


def test_a_card_without_numbers_says_so(run: Run, hub: Hub):
    run.push_to_hub(REPO)
    text = hub.repositories[REPO]["README.md"].decode()
    assert "No robustness of this model was measured" in text and "model-index" not in text


def test_what_lies_in_the_run_s_own_folder_is_told(run: Run, hub: Hub, judged: Evaluation):
    assert run.folder is not None
    save(judged, run.folder / "evaluation.npz")
    try:
        run.push_to_hub(REPO)
    finally:
        (run.folder / "evaluation.npz").unlink()
    assert "Robust accuracy, Linf radius 0.1, after pgd-3-1" in hub.repositories[REPO]["README.md"].decode()
    assert "evaluation.npz" not in hub.repositories[REPO]


def test_nothing_but_safetensors_and_configuration_comes(run: Run, hub: Hub):
    run.push_to_hub(REPO)
    hub.repositories[REPO] |= {"resume.pt": b"a pickle", "pytorch_model.bin": b"a pickle", "setup.py": b"code"}
    hub.asked.clear()
    folder = fetched(f"hf://{REPO}")
    assert {path.name for path in folder.iterdir()} == {"config.toml", "metrics.jsonl", "model.safetensors"}
    assert not [line for line in hub.asked if line.endswith(("resume.pt", "pytorch_model.bin", "setup.py"))]
    assert folder.name == hub.commit(REPO)


def test_a_damaged_download_is_refused(run: Run, hub: Hub):
    run.push_to_hub(REPO)
    weights = bytearray(hub.repositories[REPO]["model.safetensors"])
    weights[-5] ^= 1
    hub.repositories[REPO]["model.safetensors"] = bytes(weights)
    with pytest.raises(BadInput, match="its weights are not those that were written"):
        pl.load_run(f"hf://{REPO}")


def test_code_of_a_repository_is_never_run(run: Run, hub: Hub):
    """A folder from elsewhere names a function; only the caller's own naming has it imported."""
    run.push_to_hub(REPO)
    own = pl.load_run(f"hf://{REPO}").about
    path = Path(str(run.folder)).with_name("evil.safetensors")
    save_weights(path, run.model, {**own, "model": {"name": "evil:build", "options": {}}})
    hub.repositories[REPO]["model.safetensors"] = path.read_bytes()
    with pytest.raises(BadInput, match="if you trust that code, add --built-by evil:build"):
        pl.load_run(f"hf://{REPO}")


@pytest.mark.parametrize("address", ["hf://", "hf://repo", "hf://a/b/c", "hf://a/../b", "hf://a/b@"])
def test_addresses_that_are_none(address: str):
    with pytest.raises(BadInput, match="is no address on the Hub: write hf://user/repo"):
        pl.load_run(address)
    assert address_of("hf://a/b@v1") == ("a/b", "v1")


def test_what_is_refused(run: Run, hub: Hub, judged: Evaluation, tmp_path: Path):
    with pytest.raises(BadInput, match=r"^cannot load hf://no.one/nothing: \w+: "):
        pl.load_run("hf://no.one/nothing")
    hub.repositories["a/b"] = {"README.md": b"hello"}
    with pytest.raises(BadInput, match=r"holds no model\.safetensors: planish's own push_to_hub puts one there"):
        pl.load_run("hf://a/b")
    with pytest.raises(BadInput, match=r"neither evaluation\.npz nor audit\.npz"):
        run.push_to_hub(REPO, [tmp_path])
    with pytest.raises(BadInput, match="in memory alone"):
        Run(nn.Identity(), {}, []).push_to_hub(REPO)
    with pytest.raises(BadInput, match="no address"):
        run.push_to_hub("tiny")
    stranger = json.loads(json.dumps(judged.meta)) | {"model": {"name": "another", "digest": "0"}}
    with pytest.raises(BadInput, match="a record of another is of other weights than"):
        run.push_to_hub(REPO, [type(judged)(**{**vars(judged), "meta": stranger})])


def test_no_hub_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match=rf"^cannot push to hf://{REPO}: \w+: [^\n]*$"):
        run.push_to_hub(REPO)
