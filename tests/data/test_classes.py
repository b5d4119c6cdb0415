"""Class names of data and model are compared: matched by name, or refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from planish.core.errors import BadInput
from planish.core.threat import Linf
from planish.data.classes import Classes, has_names, matched, named_places, numbered_as
from planish.data.images import Images
from planish.data.source import find, load
from planish.records.evaluation import Evaluation
from planish.runs import judge
from planish.runs.config import experiment_from
from planish.runs.judge import EvaluationConfig, LoadedModel, evaluate_into, load_model
from planish.runs.train import train_into

Rgb = Callable[..., np.ndarray]
SHADES = {"black": 0, "gray": 120, "white": 250}


def images(labels: list[int], classes: list[str]) -> Images:
    return Images.numbered(torch.zeros(len(labels), 1, 2, 2), torch.tensor(labels), classes, "mine")


def test_classes_are_matched_by_name():
    """Issue: data that lists its classes in another order than the model was judged by number."""
    model = ["cat", "dog", "emu"]
    found, told = matched(images([0, 1, 2], ["emu", "cat", "dog"]), model)
    assert found.labels.tolist() == [2, 0, 1] and found.classes == ("cat", "dog", "emu")
    assert told == ["mine has the model's classes in an order of its own: labels were matched by name"]
    found, told = matched(images([0, 1], ["Emu", "DOG"]), model)
    assert found.labels.tolist() == [2, 1] and told[0].startswith("mine has 2 of the model's 3 classes")
    for same in (model, ["Cat", "dog ", "emu"], ["cat", "dog"], ["0", "1", "2"]):
        given = images([0, 1], same)
        assert matched(given, model) == (given, [])


def test_classes_that_have_numbers_alone_are_left():
    given = images([1], ["cat", "dog"])
    for model in (["0", "1"], ["LABEL_0", "LABEL_1"]):
        assert matched(given, model) == (given, [])
    found, _ = matched(images([0, 1, 2], ["1", "10", "2"]), ["1", "2", "10"])
    assert found.labels.tolist() == [0, 2, 1]
    assert has_names(["1", "0"]) and not has_names(["0", "1"]) and not has_names(["LABEL_0"])


def test_strange_classes_are_refused_or_told():
    given = images([0, 1], ["cat", "dog"])
    found, told = matched(given, ["n01", "n02"])
    assert found is given and "none of the class names of mine (cat, dog) is the model's (n01, n02)" in told[0]
    for model in (["cat", "emu"], ["n01", "n02", "n03"]):
        with pytest.raises(BadInput, match=r"mine has the classes .*dog, which the model does not know; its \d are "):
            matched(given, model)
    assert named_places(["a b", "A_B"], ["a b", "A_B"]) == [0, 1], "names that differ in case alone are taken exactly"


CRANES = ["dog", "crane", "cat", "crane"]


def test_two_classes_of_one_name_keep_their_labels_or_are_refused():
    """Issue: the labels of the first were those of the second, though data and model had the same classes."""
    given = images([0, 1, 2, 3], CRANES)
    for same in (CRANES, ["Dog", "crane", "cat", "crane"]):
        assert matched(given, same) == (given, [])
    assert matched(given, ["0", "1", "2", "3"]) == (given, []), "numbers are no names"
    found, _ = matched(images([0, 1], ["cat", "Dog"]), CRANES)
    assert found.labels.tolist() == [2, 0], "names that are single are matched as ever"
    with pytest.raises(BadInput, match=r"mine has a class 'crane', and classes 1 and 3 are called so: say which it is"):
        matched(images([0, 1], ["dog", "crane"]), CRANES)
    for model in (["crane", "dog", "crane", "cat"], ["crane", "dog", "cat", "emu"]):
        with pytest.raises(BadInput, match=r"two classes of mine are called 'crane': give each a name of its own"):
            matched(given, model)
    with pytest.raises(BadInput, match="two classes of mine are called 'Cat' and 'cat'"):
        matched(images([0, 1], ["Cat", "cat"]), ["cat", "dog"])
    with pytest.raises(BadInput, match="two classes of mine are called 'crane'"):
        numbered_as(given, {"dog": 0, "crane": 1, "cat": 2})
    assert named_places(["a b", "A_B"], ["A_B", "a b"]) == [1, 0]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Uniform pictures, train/ with three classes, test/ in another root with two of them and other spelling."""
    for root, names in (("known/train", SHADES), ("other", {"White": 250, "Black": 0})):
        for name, shade in names.items():
            for number in range(4):
                path = tmp_path / root / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), shade + number).save(path)
    return tmp_path


def test_a_run_is_judged_by_the_names_of_its_classes(pictures: Path):
    """Issue: a test folder that lacks a class was judged by number, 100 % shown as 50 %."""
    tree = {"data": {"source": f"folder:{pictures / 'known'}"}, "model": {"name": "small-cnn", "width": 4}}
    tree |= {"method": {"name": "standard"}, "settings": {"epochs": 12, "batch_size": 6, "learning_rate": 0.1}}
    run = pictures / "run"
    list(train_into(experiment_from(tree), run))
    origin = json.loads((run / "provenance.json").read_text())
    assert origin["data_files"] == "12 files found, 0 left out" and origin["data_notes"] == []
    task = EvaluationConfig(str(pictures / "other"), Linf(0.0), ())
    batch, about, told = judge.images_to_judge(task, load_model(str(run)).about)
    assert batch.labels.tolist() == [0] * 4 + [2] * 4 and about["classes"] == list(SHADES)
    assert "2 of the model's 3 classes" in told[0] and about["files"] == "8 files found, 0 left out"
    *_, record = evaluate_into(load_model(str(run)), task, pictures / "judged")
    assert record.clean_accuracy().value == 1.0 and told[0] in record.remarks()
    for shade in (pictures / "other").iterdir():
        shade.rename(shade.with_name(f"{shade.name}ish"))
    with pytest.raises(BadInput, match="which the model does not know; its 3 are black, gray, white"):
        judge.images_to_judge(task, load_model(str(run)).about)


def test_what_was_left_out_is_in_the_record(pictures: Path):
    (pictures / "other" / "Black" / "list.txt").touch()
    task = EvaluationConfig(str(pictures / "other"), Linf(0.0), ())
    _, about, told = judge.images_to_judge(task, {})
    assert told == ["other: 8 files found, 1 left out: Black/list.txt"] and about["files"] in told[0]


def test_streamed_labels_are_matched_too(pictures: Path):
    listing = find(str(pictures / "other"), "train")
    found, _ = matched(listing, ["black", "white"])
    assert found is listing
    found, _ = matched(listing, ["white", "black"])
    assert found.labels.tolist() == [1] * 4 + [0] * 4


def test_issue_20_classes_that_do_not_fit_are_told_in_one_line():
    """A model of 100 classes that knows none of the images' said so in up to 96 lines."""
    labels = np.arange(100)
    record = Evaluation(
        labels,
        labels,
        np.ones(100, np.float32),
        np.zeros(100, np.int64),
        (),
        {"schema_version": 2, "threat": {"norm": "Linf", "radius": 0.1}, "data": {"classes": [*map(str, labels)]}},
    )
    (said,) = record.class_warnings()
    assert said == "99 classes (1, 2, 3, 4, 5 and 94 more) are never predicted on clean images, though 99 show them."


def forms(folder: Path) -> list[Classes]:
    """How a user may say that "cat" is number 3 and "dog" number 1, in Python and as files."""
    names, numbers = ["ant", "dog", "emu", "Cat", "fox"], {"cat": 3, "dog": 1, "cow": 0}
    (folder / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")
    (folder / "numbers.json").write_text(json.dumps(numbers), encoding="utf-8")
    (folder / "numbers.toml").write_text("cat = 3\ndog = 1\n", encoding="utf-8")
    files = ("names.txt", "names.json", "numbers.json", "numbers.toml")
    return [names, tuple(names), numbers, *(str(folder / file) for file in files), folder / "names.txt"]


def test_issue_20_a_user_says_which_class_is_which(tmp_path: Path):
    for classes in forms(tmp_path):
        found = numbered_as(images([0, 1, 0], ["cat", "dog"]), classes)
        assert found.labels.tolist() == [3, 1, 3] and found.classes[1] == "dog" and found.classes[3].lower() == "cat"
        with pytest.raises(BadInput, match=r"mine has the classes owl, which the \d that were given lack"):
            numbered_as(images([0, 1], ["cat", "owl"]), classes)


def test_data_that_number_their_classes_keep_their_labels_and_get_the_names():
    found = numbered_as(images([1, 0], ["0", "1"]), ["cat", "dog", "emu"])
    assert found.labels.tolist() == [1, 0] and found.classes == ("cat", "dog", "emu")
    with pytest.raises(BadInput, match="has the classes 1, which the 1 that were given lack"):
        numbered_as(images([1, 0], ["0", "1"]), ["cat"])


def test_a_list_numbers_data_whose_classes_are_numbers():
    """Issue: a list of the same numbers in another order was ignored, where a mapping was heeded."""
    for classes in (["2", "0", "1"], ["2", "0", "1", "3"], {"2": 0, "0": 1, "1": 2}):
        found = numbered_as(images([0, 1, 2], ["0", "1", "2"]), classes)
        assert found.labels.tolist() == [1, 2, 0] and found.classes[:3] == ("2", "0", "1")
    with pytest.raises(BadInput, match="mine has the classes 1, which the 2 that were given lack"):
        numbered_as(images([0, 1], ["0", "1"]), ["2", "0"])


def test_umlauts_are_the_same_however_a_file_system_spells_them():
    found = numbered_as(images([0], ["Bär"]), ["Fuchs", "Ba\u0308r"])
    assert found.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "has no class; give one class name a line"),
        ("a.txt", "cat\ncat\n", "has 'cat' twice"),
        ("a.json", "{", "cannot be read"),
        ("a.json", '{"cat": "1"}', "has 'cat' = '1'"),
        ("a.json", '{"cat": true}', "has 'cat' = True"),
        ("a.json", '{"cat": -1}', "has 'cat' = -1"),
        ("a.json", "[1]", "has no names"),
        ("a.toml", "cat", "cannot be read"),
        ("b.txt", None, "no file of classes at"),
        ("c.txt", "dog\n\ncat\n", "c.txt: line 2 is empty, and each line has its number"),  # cat was taken for 1, not 2
    ],
)
def test_a_file_of_classes_that_is_none_is_refused(name: str, text: str | None, message: str, tmp_path: Path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=message) as raised:
        numbered_as(images([0], ["cat"]), str(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_issue_20_a_folder_of_some_classes_is_judged_by_a_model_of_many(pictures: Path):
    """Its model says no names: without `classes` the folder's first class would be the model's first."""
    judged = LoadedModel(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1000)), "many")
    task = EvaluationConfig(str(pictures / "other"), Linf(0.0), (), classes={"black": 700, "white": 20})
    batch, about, _ = judge.images_to_judge(task, judged.about)
    assert sorted({*batch.labels.tolist()}) == [20, 700] and about["classes"][700] == "black"
    *_, record = evaluate_into(judged, task, pictures / "mapped")
    assert not any("matched by number" in remark for remark in record.remarks())
    *_, unsaid = evaluate_into(judged, replace(task, classes=None), pictures / "unsaid")
    assert any("--classes FILE says which class is which" in remark for remark in unsaid.remarks())


def test_load_labels_as_the_model_numbers(tmp_path: Path):
    x, y = np.zeros((4, 1, 8, 8), np.float32), np.arange(4) % 2
    np.savez(tmp_path / "mine-test.npz", x=x, y=y, classes=np.array(["ant", "bee"]))
    found = load(str(tmp_path / "mine-test.npz"), "test", classes=["wasp", "bee", "ant"])
    assert (found.labels.tolist(), found.classes) == ([2, 1, 2, 1], ("wasp", "bee", "ant"))
    with pytest.raises(BadInput, match="lack"):
        load(str(tmp_path / "mine-test.npz"), "test", classes=["wasp", "bee"])
