"""How records are stored, and how attacks are told apart in them."""

import errno
import json
from dataclasses import dataclass, make_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish.attacks import Worst
from planish.attacks.gradient import APGDT, PGD
from planish.core.errors import BadInput
from planish.core.losses import cross_entropy
from planish.records import store
from planish.records.origin import attack_text, describe_attack, same_attack
from planish.records.store import Kind, check_version

KIND = Kind("no record in {folder}", "{path} is no record")


def both(document: dict[str, Any], arrays: store.Arrays) -> tuple[dict[str, Any], store.Arrays]:
    return document, arrays


def test_a_record_comes_back_and_its_former_document_too(tmp_path: Path):
    path = tmp_path / "one.npz"
    store.write(path, {"a": [1, None]}, {"x": np.arange(3)})
    document, arrays = KIND.read(path, both)
    assert document == {"a": [1, None]} and arrays["x"].tolist() == [0, 1, 2] and list(arrays) == ["x"]
    np.savez(path, x=np.arange(2), meta=np.array(json.dumps({"b": 2})))
    document, arrays = KIND.read(path, both)
    assert document == {"b": 2} and list(arrays) == ["x"]


def test_every_flipped_byte_is_found_or_harmless(tmp_path: Path):
    path = tmp_path / "one.npz"
    store.write(path, {"a": 1}, {"x": np.arange(30.0)})
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            document, arrays = KIND.read(path, both)
        except BadInput:
            continue
        assert document == {"a": 1} or not document, at
        assert arrays.get("x", np.arange(30.0)).tolist() == list(range(30)), at


def test_a_record_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Issue: without the permission to read it, it was said to be no record."""

    def locked(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(store, "read_arrays", locked)
    with pytest.raises(BadInput, match=r"^cannot read .*one.npz: Permission denied; allow it to your user$"):
        KIND.read(tmp_path / "one.npz", both)


def test_what_is_no_record(tmp_path: Path):
    path = tmp_path / "one.npz"
    with pytest.raises(BadInput, match=f"^no record in {tmp_path}$"):
        KIND.read(path, both)
    store.write(path, {"schema_version": 9}, {})
    with pytest.raises(BadInput, match=r"one.npz: this has schema version 9; planish reads 2$"):
        KIND.read(path, lambda document, _: check_version("this", document, 1, 2))
    check_version("this", {}, 1, 2, unsaid=1)
    with pytest.raises(ValueError, match="JSON"):
        store.write(path, {"a": float("nan")}, {})


@dataclass(frozen=True)
class Own:
    loss: Any = cross_entropy
    steps: int = 3
    reach: float = float("inf")


def renamed(one: Own) -> Any:
    return make_dataclass("Another", [(name, Any) for name in vars(one)], frozen=True)(**vars(one))


def test_an_attacks_identity_is_json_and_reads_well():
    for attack in (PGD(3, 2), APGDT(3, 2), Own(), partial(Own)):
        assert json.loads(json.dumps(describe_attack(attack), allow_nan=False)) == describe_attack(attack)
    assert describe_attack(Own()) == {
        "name": "Own",
        "parameters": {"loss": {"name": "cross_entropy"}, "steps": 3, "reach": {"name": "inf"}},
    }
    assert attack_text(describe_attack(Own())) == "Own(loss=cross_entropy, steps=3, reach=inf)"
    assert attack_text(describe_attack(Worst((Own(), Own())))) == "2 x Own(loss=cross_entropy, steps=3, reach=inf)"
    assert " at 0x" not in attack_text(describe_attack(lambda _: None))


def test_a_class_may_be_renamed():
    """Where the attack was asked for by a registered name, as on the command line."""
    known = describe_attack(Own())
    assert same_attack(known, Own(), "mine") and same_attack(known, renamed(Own()), "pgd-3-2")
    assert not same_attack(known, renamed(Own()), "mine"), "a name that anything may have"
    assert not same_attack(known, Own(steps=4), "pgd-3-2") and not same_attack(known, Own(loss=max), "pgd-3-2")


def test_texts_of_an_earlier_planish():
    assert same_attack("FormerName(rule=5)", Own(), "pgd-3") and not same_attack("FormerName(rule=5)", Own(), "mine")
    assert same_attack("Own(loss=cross_entropy, steps=3, reach=inf)", Own(), "mine")
    lent = make_dataclass("Surrogate", ["name", "digest"], frozen=True)
    one, other = lent("a", "12ab"), lent("b", "34cd")
    assert same_attack("Former(digest='12ab')", one, "transfer-3")
    assert not same_attack("Former(digest='12ab')", other, "transfer-3")
