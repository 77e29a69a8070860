"""The wheel and the source distribution: built, looked into, installed elsewhere, imported from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("compiler", "passes", "runtimes")
DOOR = "compiler/door"
"""The folder that is ``llmc`` itself."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Run a command with nothing on its input; its output, shown in full where it fails."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PIP_NO_INPUT": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("packaging")
    # A copy, so that nothing is left in the checkout and nothing that lies there (build/) gets into the wheel.
    copy = folder / "source"
    copy.mkdir()
    for name in (*FOLDERS, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", copy, cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed into, and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        target,
        wheel,
        cwd=target,
    )
    return target


def sources() -> set[str]:
    """Every module and data file that a user needs, as the wheel names it."""
    kinds = ("*.py", "py.typed", "*.json", "*.txt", "kernels/**/*.[ch]", "solvers/**/*.[ch]")
    return {
        f"llmc/{path.relative_to(ROOT).as_posix()}".replace(f"llmc/{DOOR}/", "llmc/")
        for folder in FOLDERS
        for kind in kinds
        for path in (ROOT / folder).rglob(kind)
    }


def test_every_folder_with_modules_is_a_listed_package() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {
        ".".join(("llmc", *path.parent.relative_to(ROOT / DOOR if path.is_relative_to(ROOT / DOOR) else ROOT).parts))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    }
    assert found == listed, "pyproject.toml: tool.setuptools.packages"
    assert PROJECT["tool"]["setuptools"]["package-dir"]["llmc"] == DOOR
    for name in listed - {"llmc"}:
        assert (ROOT / Path(*name.split(".")[1:]) / "__init__.py").is_file(), f"{name} has no __init__.py"


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == sources()
    assert {
        "llmc/__init__.py",
        "llmc/py.typed",
        "llmc/compiler/py.typed",
        "llmc/passes/py.typed",
        "llmc/runtimes/py.typed",
    } <= names
    assert "llmc/compiler/artifact/manifest.schema.json" in names
    assert "llmc/runtimes/bench/report.schema.json" in names


def test_the_wheel_carries_command_licence_and_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = {
            name.partition(".dist-info/")[2]: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    assert "llmc = llmc.compiler.cli.app:main" in metadata["entry_points.txt"]
    assert "Apache License" in metadata["licenses/LICENSE"]
    assert "License-Expression: Apache-2.0" in metadata["METADATA"]
    assert "Requires-Python: >=3.11" in metadata["METADATA"]


def test_the_sdist_can_be_tested(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints-dev.txt"} <= names
    assert "tests/conftest.py" in names
    assert not any("__pycache__" in name for name in names)


def test_the_wheel_imports_without_the_checkout(installed: Path) -> None:
    code = (
        "import importlib, pkgutil, sys, llmc, llmc.compiler, llmc.passes, llmc.runtimes\n"
        "target = sys.argv[1]\n"
        "assert not {'numpy', 'onnx', 'torch'} & set(sys.modules)\n"
        "assert callable(llmc.compile) and llmc.open and llmc.generate\n"
        "for package in (llmc, llmc.compiler, llmc.passes, llmc.runtimes):\n"
        "    assert package.__file__.startswith(target), package.__file__\n"
        "    for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if found.name.endswith('__main__'): continue\n"
        "        module = importlib.import_module(found.name)\n"
        "        assert module.__file__.startswith(target), module.__file__\n"
        "        print(found.name)\n"
    )
    imported = run(sys.executable, "-c", code, installed, cwd=installed, path=installed).split()
    assert "llmc.compiler.artifact.manifest" in imported
    assert "llmc.runtimes.session.engine" in imported


def test_the_command_starts(installed: Path) -> None:
    command = installed / "bin" / "llmc"
    assert command.is_file()
    if not (installed / "llmc" / "compiler" / "cli" / "app.py").is_file():
        pytest.skip("there is no command line yet")
    assert "compile" in run(command, "--help", cwd=installed, path=installed)


def test_the_constraints_pin_what_the_project_names() -> None:
    pinned = {
        line.partition("==")[0].lower().replace("_", "-"): line.partition("==")[2].strip()
        for line in (ROOT / "constraints-dev.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    groups = [PROJECT["project"]["dependencies"]]
    groups += [PROJECT["project"]["optional-dependencies"][name] for name in ("cpu", "gguf", "dev")]
    for requirement in (item for group in groups for item in group):
        name = requirement.split(">")[0].split("[")[0].strip().lower()
        assert pinned.get(name) or name == PROJECT["project"]["name"], f"constraints-dev.txt does not pin {name}"
    assert pinned["torch"] == "2.13.0", "without a local version: each machine has its own build"
