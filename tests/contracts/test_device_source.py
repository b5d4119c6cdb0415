"""Read from the source: every tensor that is made says where, and nothing becomes NumPy's before it is on the CPU."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import planish

HOME = Path(planish.__file__).parent
FACTORIES = {
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "normal", "ones", "rand", "randint", "randn",
    "randperm", "tensor", "zeros",
}  # fmt: skip
MODULES = ("models/__init__.py", "models/resnext.py", "audit/checks/planted.py")
"""Parameters and buffers of modules: they are made where modules are made, and move with them."""
ON_THE_CPU = {
    "audit/measures/certificates.py": "flat images in float64 for an integer program",
    "data/listing.py": "a listing's own indices and labels, which stay in memory",
    "data/stream.py": "rows of a listing",
    "evaluation/evaluate.py": "columns of a record, filled on the CPU by _filled",
    "records/shards.py": "rows of a test set, made on the CPU",
    "runs/merge.py": "rows of a test set, made on the CPU",
}
"""Files that call numpy() on what is on the CPU by construction, not by a cpu() in the same expression."""


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Yield the calls of attributes with the attribute's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node, node.func.attr


def is_torch(call: ast.Call) -> bool:
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return isinstance(owner, ast.Name) and owner.id == "torch"


def nowhere(source: str) -> list[int]:
    """Lines that make a tensor, or a generator, without a device."""
    found = []
    for call, name in calls(ast.parse(source)):
        named = any(keyword.arg == "device" for keyword in call.keywords)
        if is_torch(call) and (
            (name in FACTORIES and not named) or (name == "Generator" and not named | bool(call.args))
        ):
            found.append(call.lineno)
    return found


def too_early(source: str) -> list[int]:
    """Lines that call numpy() with no cpu() before it in the same expression."""
    return [
        call.lineno
        for call, name in calls(ast.parse(source))
        if name == "numpy" and not any(part == "cpu" for _, part in calls(call.func))
    ]


def fixed(source: str) -> list[int]:
    """Lines that name the kind of device for autocast, or a GPU by its number, themselves."""
    return [
        call.lineno
        for call, name in calls(ast.parse(source))
        if (name == "autocast" and call.args and isinstance(call.args[0], ast.Constant))
        or (name == "cuda" and not is_torch(call))
        or name in ("set_default_device", "set_default_tensor_type")
    ]


def unmapped(source: str) -> list[int]:
    """Lines that load a file's tensors wherever they were saved."""
    return [
        call.lineno
        for call, name in calls(ast.parse(source))
        if is_torch(call) and name == "load" and not any(keyword.arg == "map_location" for keyword in call.keywords)
    ]


SOURCES = {str(path.relative_to(HOME)): path.read_text(encoding="utf-8") for path in sorted(HOME.rglob("*.py"))}


@pytest.mark.parametrize(
    ("rule", "planted"),
    [
        (nowhere, "torch.zeros(3)"),
        (nowhere, "torch.Generator().manual_seed(0)"),
        (too_early, "x.detach().numpy()"),
        (fixed, 'torch.autocast("cuda", torch.bfloat16)'),
        (fixed, "model.cuda()"),
        (unmapped, "torch.load(path, weights_only=True)"),
    ],
)
def test_the_rules_see_what_they_forbid(rule, planted: str):
    assert rule(planted) == [1]


def test_every_tensor_is_made_on_a_device_that_is_named():
    found = {name: nowhere(source) for name, source in SOURCES.items() if name not in MODULES}
    assert not {name: lines for name, lines in found.items() if lines}
    assert all(nowhere(SOURCES[name]) for name in MODULES)


def test_nothing_becomes_numpys_before_it_is_on_the_cpu():
    assert {name for name, source in SOURCES.items() if too_early(source)} == set(ON_THE_CPU)


def test_no_kind_of_device_is_written_down():
    assert not {name: lines for name, source in SOURCES.items() if (lines := fixed(source) + unmapped(source))}
