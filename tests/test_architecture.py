"""The rules of the tree, read from its files: which way imports point, what a start costs, how long a file gets."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("compiler", "passes", "runtimes")
MAX_LINES = 400

PAGE = ROOT / "docs" / "architecture.md"
ROW = re.compile(r"^\| `([\w/]+)(?:\.py)?` \| (?:—|(.+)) \|$", re.MULTILINE)

#: Which rooms a room may import, besides itself, as the page says it: a room is a folder of the second level, or a
#: file of the first. `base` may be imported from anywhere.
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    room: frozenset(re.findall(r"`([\w/]+)(?:\.py)?`", others))
    for room, others in ROW.findall(PAGE.read_text(encoding="utf-8").partition("| room | may import")[2])
}
EVERYWHERE = "compiler/base"
MOST_FILES = {"compiler": 9, "passes": 14, "runtimes": 5}
"""At the top of each folder."""

SLOW = ("torch", "transformers", "onnxruntime", "openvino", "tensorrt")

#: Modules that subclass a class of a slow package, or compute with torch in every line; others import them inside
#: functions only.
MADE_OF_SLOW = frozenset(
    {
        "llmc.compiler.capture.trace_cache",
        "llmc.compiler.quantization.products",
        "llmc.compiler.quantization.solvers.block_grid",
        "llmc.compiler.quantization.solvers.blocks_library",
        "llmc.compiler.quantization.solvers.gptq",
        "llmc.compiler.calibration.activations",
        "llmc.compiler.calibration.estimate",
        "llmc.compiler.calibration.expert_layer",
        "llmc.compiler.calibration.expert_walk",
        "llmc.compiler.calibration.fit",
        "llmc.compiler.calibration.matrices",
        "llmc.compiler.calibration.moments",
        "llmc.compiler.calibration.recipe",
        "llmc.compiler.calibration.segment",
        "llmc.compiler.calibration.steps",
        "llmc.compiler.calibration.walk",
        "llmc.compiler.calibration.float_walk",
        "llmc.compiler.calibration.calibrate",
        "llmc.compiler.calibration.cache_ranges",
        "llmc.compiler.calibration.channel_scales",
    }
)

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


def room(name: str) -> str:
    """The room of a module, or of a name in it; empty for a folder itself."""
    return "/".join(name.split(".")[1:3]) if name.count(".") > 1 else ""


def allowed(own: str, other: str) -> bool:
    """Whether a module of one room may import one of the other."""
    rooms = {own, EVERYWHERE, *MAY_IMPORT[own]}
    return other in rooms or other.partition("/")[0] in rooms


def module_of(name: str) -> str | None:
    """The module of this project that an imported name is or lies in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


@pytest.mark.parametrize("module", MODULES.values(), ids=list(MODULES))
def test_imports_point_one_way(module: Module) -> None:
    """Those inside functions and those for types, too."""
    own = room(module.name)
    wrong = [
        f"{module.path.relative_to(ROOT)}:{line} imports {name}"
        for line, name, _ in module.imports()
        if name.startswith("llmc.") and own and not allowed(own, room(module_of(name) or name))
    ]
    assert not wrong, f"{own} may import itself, {EVERYWHERE} and {sorted(MAY_IMPORT[own])}: {wrong}"


def test_the_rule_sees_a_wrong_arrow() -> None:
    """The checks above would be worthless if they passed on everything."""
    text = (
        "from typing import TYPE_CHECKING\n"
        "def f():\n    from llmc.compiler.cli import app\n"
        "if TYPE_CHECKING:\n    import llmc.runtimes.engines\n"
    )
    module = Module("llmc.passes.graph.x", ROOT / "passes" / "graph" / "x.py", ast.parse(text))
    arrows = [(line, room(name), runs) for line, name, runs in module.imports() if name.startswith("llmc.")]
    assert arrows == [(3, "compiler/cli", False), (5, "runtimes/engines", False)]
    assert not any(allowed(room(module.name), other) for _, other, _ in arrows)
    relative = Module("llmc.passes.x", ROOT / "passes" / "x.py", ast.parse("from ..runtimes import engines"))
    assert [name for _, name, _ in relative.imports()] == ["llmc.runtimes.engines"]


def test_the_table_holds_what_is_there() -> None:
    rooms = {room(name) for name in MODULES} - {""}
    assert set(MAY_IMPORT) == rooms
    named = {other for others in MAY_IMPORT.values() for other in others if "/" in other}
    assert named <= rooms


def find_circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """Names along a circle; empty when there is none."""
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for target in sorted(arrows.get(name, ())):
                if circle := visit(target, (*way, name)):
                    return circle
            done.add(name)
        return []

    return next((circle for name in sorted(arrows) if (circle := visit(name, ()))), [])


def arrows_between(place: Callable[[str], str]) -> dict[str, set[str]]:
    """What imports what, those for types and inside functions too, by the place that each module has."""
    arrows: dict[str, set[str]] = {}
    for module in MODULES.values():
        for _, name, _ in module.imports():
            found, own = module_of(name), place(module.name)
            if found is not None and own and place(found) not in {"", own}:
                arrows.setdefault(own, set()).add(place(found))
    return arrows


@pytest.mark.parametrize("place", [room, str], ids=["rooms", "modules"])
def test_no_circles(place: Callable[[str], str]) -> None:
    circle = find_circle(arrows_between(place))
    assert not circle, f"a circle of imports: {' -> '.join(circle)}"


def test_a_circle_is_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not find_circle({"a": {"b", "c"}, "b": {"c"}})


@pytest.mark.parametrize(("folder", "most"), MOST_FILES.items())
def test_few_files_lie_at_the_top(folder: str, most: int) -> None:
    files = sorted(path.name for path in (ROOT / folder).iterdir() if path.is_file())
    assert len(files) <= most, f"{folder} has {files}; give one of them a room"


def test_tests_mirror_the_folders() -> None:
    for folder in FOLDERS:
        for path in (ROOT / "tests" / folder).rglob("test_*.py"):
            place = path.parent.relative_to(ROOT / "tests")
            assert (ROOT / place / "__init__.py").exists(), f"{path} tests a folder that is not there"


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
        if runs and (name.split(".")[0] in SLOW or module_of(name) in MADE_OF_SLOW)
    ]
    assert not slow or module.name in MADE_OF_SLOW, f"import these inside the functions that need them: {slow}"


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
