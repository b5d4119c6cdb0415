"""The package's own rules, read from its source: who imports whom, who prints, who writes, how long things are."""

import ast
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import planish

HOME = Path(planish.__file__).parent
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(HOME.rglob("*.py"))}
FILES = {".".join(path.relative_to(HOME).with_suffix("").parts): tree for path, tree in TREES.items()}

ORDER = [
    "core",
    "registry storage",
    "search",
    "records",
    "data models",
    "attacks methods",
    "training",
    "evaluation",
    "audit",
    "report",
    "runs",
    "reproduce compat",
    "cli",
    "__main__",
]
"""Imports go to lines further up, and inside a package."""
RANK = {name: rank for rank, line in enumerate(ORDER) for name in line.split()}
SHARED = {"attacks.ascents"}  # what component files may import from their own package, besides its __init__
WRITERS = {
    "cli.gate", "cli.main", "cli.tables", "cli.trust", "compat.autoattack", "compat.calling", "data.readers.parquet",
    "data.readers.webdataset", "evaluation.adversarials", "evaluation.pngs", "records.audit", "records.store",
    "report.distances", "report.front", "report.index", "report.page", "report.pdf", "report.robustbench",
    "report.saving", "reproduce.figure", "reproduce.measured", "reproduce.pages", "reproduce.readings",
    "reproduce.running", "runs.audit", "runs.keeper", "runs.places", "runs.run", "runs.sweep", "runs.train",
    "runs.workers",
}  # fmt: skip


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield what a file imports from planish, dotted, without "planish."; nested and type-checking imports too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            if node.module == "planish":
                yield from (alias.name for alias in node.names)
            elif (node.module or "").startswith("planish."):
                yield str(node.module).removeprefix("planish.")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("planish."):
                    yield alias.name.removeprefix("planish.")


def when_imported(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements that run when a file is imported: none in functions, none for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from when_imported(child)


def needed(tree: ast.AST) -> Iterator[str]:
    """Yield the files that must be imported before this one, by name as in FILES."""
    for node in when_imported(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "planish":
            home = (node.module or "").removeprefix("planish").removeprefix(".")
            for name in [f"{home}.{alias.name}".removeprefix(".") for alias in node.names]:
                yield next(known for known in (name, f"{name}.__init__", home, f"{home}.__init__") if known in FILES)
        elif isinstance(node, ast.Import):
            for name in [alias.name.removeprefix("planish.") for alias in node.names if "planish." in alias.name]:
                yield name if name in FILES else f"{name}.__init__"


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call with the source of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def argument(call: ast.Call, name: str) -> object:
    found = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return ast.literal_eval(found[0]) if found else None


def test_the_order_knows_every_module():
    assert {name.split(".")[0] for name in FILES} - {"__init__"} == set(RANK)
    assert len(FILES) > 30


@pytest.mark.parametrize("name", sorted(set(FILES) - {"__init__"}))
def test_imports_point_left(name: str):
    own = name.split(".")[0]
    for imported in imports(FILES[name]):
        other = imported.split(".")[0]
        assert other in RANK, f"{name} imports {imported}"
        assert other == own or RANK[other] < RANK[own], f"{name} may not import {imported}"


def test_no_file_needs_itself():
    """Files can be imported in some order, each after all that it needs; graphlib raises where there is a circle."""
    needs = {name: set(needed(tree)) - {"__init__"} for name, tree in FILES.items()}
    assert needs["core.threat"] >= {"core.batch", "core.errors"} and sum(map(len, needs.values())) > 300
    order = list(TopologicalSorter(needs).static_order())
    assert order.index("core.errors") < order.index("core.threat") < order.index("cli.main")


def test_few_files_stand_at_the_top():
    assert {name for name in FILES if "." not in name} <= {"__init__", "__main__", "registry"}
    homes = {path.parent for path in TREES}
    assert all((home / "__init__.py").exists() for home in homes), "a room without __init__.py"


@pytest.mark.parametrize("package", ["attacks", "methods", "models"])
def test_components_do_not_know_their_siblings(package: str):
    listed = (f"{package}.__init__", "attacks.suites")  # a room shows its files' classes; suites are made of attacks
    names = [name for name in FILES if name.startswith(f"{package}.") and not name.startswith(listed)]
    assert len(names) > 1
    for name in names:
        for imported in imports(FILES[name]):
            if imported.split(".")[0] == package:
                assert imported == package or imported in SHARED, f"{name} imports its sibling {imported}"


def test_only_the_command_line_prints_parses_and_exits():
    terminal = {"print", "input", "exit", "quit", "sys.exit", "os._exit", "SystemExit", "breakpoint"}
    for name, tree in FILES.items():
        if name.startswith("cli.") or name == "compat.autoattack":  # which prints as what it stands for does
            continue
        for called, _ in calls(tree):
            assert called not in terminal and not called.startswith(("sys.stdout", "sys.stderr")), f"{name}: {called}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                roots = {alias.name.split(".")[0] for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not roots & {"typer", "rich", "argparse", "click"}, name


CHANGING = {
    "write_text", "write_bytes", "writelines", "mkdir", "makedirs", "unlink", "remove", "rename", "replace", "rmdir",
    "rmtree", "touch", "symlink_to", "mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryDirectory", "save_file",
    "copyfile", "copytree", "chmod",
}  # fmt: skip
MEMORY = {"savefig", "savez", "savez_compressed"}


def test_files_are_written_in_one_place():
    """Everything else makes bytes in memory and hands them over."""
    harmless = {"text.replace", "dataclasses.replace", "replace"}
    for name, tree in FILES.items():
        if name == "storage.files":
            continue
        buffers = {
            ast.unparse(node.targets[0])
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and ast.unparse(node.value) in ("io.BytesIO()", "BytesIO()")
        }
        for called, call in calls(tree):
            *owner, last = called.split(".")
            if last == "open":
                modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                assert not any(set(mode) & set("wax+") for mode in modes if len(mode) <= 3), f"{name}: {called}"
            elif last == "replace" and len(call.args) != 1:
                continue  # of a text, or a copy with other values: a path's takes one argument
            elif owner and last in CHANGING and called not in harmless:
                raise AssertionError(f"{name} changes files by {called}")
            elif last in MEMORY or called in ("torch.save", "np.save"):
                target = call.args[1] if called == "torch.save" else call.args[0]
                assert ast.unparse(target) in buffers, f"{name}: {called} writes to a path"


def hands_over(tree: ast.AST) -> bool:
    """Say whether a file imports what changes files; the lock and planish's own folder are no such thing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "planish.storage.files":
            if any(alias.name.startswith(("write_", "remove")) for alias in node.names):
                return True
        elif isinstance(node, ast.Import | ast.ImportFrom):
            assert "planish.storage.files" not in ast.unparse(node), "import what you need, by name"
    return False


def test_only_these_hand_files_over():
    found = {name for name, tree in FILES.items() if hands_over(tree)}
    assert len(found) > 8 and found <= WRITERS


def test_nothing_is_unpickled():
    for name, tree in FILES.items():
        for called, call in calls(tree):
            assert called not in ("pickle.load", "pickle.loads", "eval", "exec", "joblib.load"), f"{name}: {called}"
            if called == "torch.load":
                assert argument(call, "weights_only") is True, name
            if called.endswith(("np.load", "numpy.load")):
                assert argument(call, "allow_pickle") is False, name


def test_importing_planish_is_light():
    """Neither torch nor numpy before something asks for them; every public name can be asked for."""
    code = "import sys, planish; print(sorted({'torch', 'numpy', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert all(getattr(planish, name) is not None for name in planish.__all__)


def test_a_class_name_is_of_one_file():
    """Nested and private ones too: whoever reads a name must not have to ask which one. `compat` has others' names."""
    homes = defaultdict(set)
    for name, tree in FILES.items():
        if name.startswith("compat."):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].add(name)
    assert len(homes) > 150
    assert not {name: sorted(files) for name, files in homes.items() if len(files) > 1}


def test_functions_and_files_are_short():
    lengths = []
    for path, tree in TREES.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path.name
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                lengths.append(node.end_lineno - node.lineno + 1)
                assert lengths[-1] <= 50, f"{path.name}: {node.name}"
    assert len(lengths) > 1000 and statistics.median(lengths) < 10
