"""The rules of the tree, read from its files: which way imports point, what a start costs, how long a file gets."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("compiler", "passes", "runtimes")
MAX_LINES = 400

LEAVES = frozenset(
    f"llmc.compiler.{name}"
    for name in (
        *("errors", "json_record", "geometry", "manifest", "atomic_rename", "staging", "artifact"),
        *("options", "progress", "reports", "versions"),
    )
)

#: Tensors that are read when they are written: what capture makes, and passes compose.
WEIGHTS = frozenset({"llmc.compiler.lazy_weight"})

#: Which layers a layer may import, besides itself. `driver` is every other module of llmc.compiler.
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    "leaf": frozenset(),
    "checkpoint": frozenset({"leaf"}),
    "weights": frozenset({"leaf", "checkpoint"}),
    "operators": frozenset({"leaf"}),
    "capture": frozenset({"leaf", "checkpoint", "weights", "operators"}),
    "passes": frozenset({"leaf", "weights", "operators"}),
    "runtimes": frozenset({"leaf", "checkpoint"}),
    "driver": frozenset({"leaf", "checkpoint", "weights", "operators", "capture", "passes", "runtimes"}),
    "cli": frozenset({"leaf", "checkpoint", "weights", "operators", "capture", "passes", "runtimes", "driver"}),
}

SLOW = ("torch", "transformers", "onnxruntime", "openvino", "tensorrt")

#: Modules that subclass a class of a slow package and so must import it; others import them inside functions only.
SUBCLASS_SLOW = frozenset({"llmc.compiler.capture.trace_cache"})

HEAVY = (
    "torch",
    "onnxruntime",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "numpy",
    "safetensors",
    "tokenizers",
)


@dataclass(frozen=True)
class Module:
    """One source file.

    Attributes:
        name: Its import name.
        path: Where it is.
        tree: Its syntax.
    """

    name: str
    path: Path
    tree: ast.Module

    def imports(self) -> Iterator[tuple[int, str, bool]]:
        """Each import as line, full name, and whether importing this module runs it."""
        yield from self._imports(self.tree, True)

    def _imports(self, node: ast.AST, runs: bool) -> Iterator[tuple[int, str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((child.lineno, alias.name, runs) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = self._base(child)
                yield from ((child.lineno, f"{base}.{alias.name}", runs) for alias in child.names)
            else:
                later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                    isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                )
                yield from self._imports(child, runs and not later)

    def _base(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        up = node.level - (self.path.name == "__init__.py")
        return ".".join(parts[: len(parts) - up] + ([node.module] if node.module else []))


def read_modules() -> dict[str, Module]:
    modules = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(("llmc", *(part for part in parts if part != "__init__")))
            modules[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return modules


MODULES = read_modules()


def layer(name: str) -> str:
    """The layer of a module, or of a name in it."""
    parts = name.split(".")
    if parts[1] in ("passes", "runtimes"):
        return parts[1]
    if len(parts) > 2 and parts[2] in ("checkpoint", "operators", "capture", "cli"):
        return parts[2]
    if ".".join(parts[:3]) in WEIGHTS:
        return "weights"
    return "leaf" if ".".join(parts[:3]) in LEAVES or len(parts) == 2 else "driver"


def module_of(name: str) -> str | None:
    """The module of this project that an imported name is or lies in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


@pytest.mark.parametrize("module", MODULES.values(), ids=list(MODULES))
def test_imports_point_one_way(module: Module) -> None:
    own = layer(module.name)
    wrong = [
        f"{module.path.relative_to(ROOT)}:{line} imports {name}, which is {layer(name)}"
        for line, name, _ in module.imports()
        if name.startswith("llmc.") and layer(name) not in {own, *MAY_IMPORT[own]}
    ]
    assert not wrong, f"{own} may import itself and {sorted(MAY_IMPORT[own])}: {wrong}"


def test_the_rule_sees_a_wrong_arrow() -> None:
    """The checks above would be worthless if they passed on everything."""
    text = "def f():\n    from llmc.compiler.cli import app\nimport llmc.runtimes.engine\n"
    module = Module("llmc.passes.x", ROOT / "passes" / "x.py", ast.parse(text))
    assert [(line, layer(name), runs) for line, name, runs in module.imports()] == [
        (2, "cli", False),
        (3, "runtimes", True),
    ]
    relative = Module("llmc.passes.x", ROOT / "passes" / "x.py", ast.parse("from ..runtimes import engine"))
    assert [name for _, name, _ in relative.imports()] == ["llmc.runtimes.engine"]


def test_no_circles() -> None:
    runs_first = {
        module.name: {
            found
            for _, name, runs in module.imports()
            if runs and (found := module_of(name)) is not None and found != module.name
        }
        for module in MODULES.values()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle of imports: {' -> '.join([*way[way.index(name) :], name])}"
        if name not in done:
            for target in sorted(runs_first[name]):
                visit(target, (*way, name))
            done.add(name)

    for name in runs_first:
        visit(name, ())


def test_the_command_line_starts_light() -> None:
    if importlib.util.find_spec("llmc.compiler.cli.app") is None:
        pytest.skip("there is no command line yet")
    code = "import sys, json, llmc.compiler.cli.app; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & set(HEAVY), f"`llmc --help` loads {sorted(loaded & set(HEAVY))}"


@pytest.mark.parametrize("module", MODULES.values(), ids=list(MODULES))
def test_every_module_says_what_it_is(module: Module) -> None:
    assert ast.get_docstring(module.tree), f"{module.path.relative_to(ROOT)} has no docstring"


@pytest.mark.parametrize("module", MODULES.values(), ids=list(MODULES))
def test_slow_packages_are_imported_where_they_are_needed(module: Module) -> None:
    slow = [
        f"{module.path.relative_to(ROOT)}:{line} imports {name}"
        for line, name, runs in module.imports()
        if runs and (name.split(".")[0] in SLOW or module_of(name) in SUBCLASS_SLOW)
    ]
    assert not slow or module.name in SUBCLASS_SLOW, f"import these inside the functions that need them: {slow}"


def test_package_files_only_describe_and_export() -> None:
    for module in MODULES.values():
        if module.path.name == "__init__.py":
            for node in module.tree.body:
                docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
                imports = isinstance(node, ast.Import | ast.ImportFrom)
                assert docstring or names or imports, (
                    f"{module.path}:{node.lineno} does more than describe and export"
                )


def test_names() -> None:
    modules = [path.stem for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    vague = {"utils", "util", "helpers", "helper", "misc", "common"} & set(modules)
    assert not vague, f"a file is named after what is in it: {sorted(vague)}"


def test_tests_have_no_package_files() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py")), "tests are imported by path (--import-mode=importlib)"


def test_files_are_short() -> None:
    files = [path for folder in (*FOLDERS, "tests") for path in (ROOT / folder).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    long = {name: count for name, count in lengths.items() if count > MAX_LINES}
    assert not long, f"more than {MAX_LINES} lines, so more than one thing: {long}"


def test_no_bare_imports_of_the_folders() -> None:
    bare = [
        f"{module.path.relative_to(ROOT)}:{line} imports {name}"
        for module in MODULES.values()
        for line, name, _ in module.imports()
        if name.split(".")[0] in FOLDERS
    ]
    assert not bare, f"a bare name loads a second copy; import llmc.<folder>: {bare}"
