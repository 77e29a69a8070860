"""Environments: whole or not at all, of fixed versions, with a sentence where one is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmc.compiler.base.errors import MachineError, MissingDependencyError
from llmc.runtimes.bench.peers import installation
from llmc.runtimes.bench.peers.installation import (
    CPU_TORCH_INDEX,
    SOURCE_FOLDER,
    environment_directory,
    find_installation,
    install_peers,
    megabytes,
    require_installed,
)

from .fake_pip import write_source, write_wheel


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that pip can see: ``fakepeer`` 1.0 and 2.0, which asks for ``helper``, of which there are two, too."""
    folder = tmp_path / "registry"
    folder.mkdir()
    for version in ("1.0", "2.0"):
        write_wheel(folder, "fakepeer", version, {"fakepeer.py": f"import helper\nV = {version}\n"}, ("helper",))
        write_wheel(folder, "helper", version, {"helper.py": f"V = {version}\n"})
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


LOCK = "fakepeer==1.0\nhelper==1.0\n"


def test_an_environment_is_made_of_the_locked_versions(registry, make_environment, tmp_path):
    environment, root = make_environment(LOCK), tmp_path / "root"
    assert find_installation(environment, root) is None
    (made,) = install_peers([environment], root)
    assert made == find_installation(environment, root)
    assert (made.versions["fakepeer"], made.versions["helper"], made.version) == ("1.0", "1.0", "1.0")
    assert made.disk_bytes > 1000
    # It was made under another name and moved: it runs where it is now.
    code = "import fakepeer, sys; print(fakepeer.V, sys.prefix)"
    said = subprocess.run([str(made.python), "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["1.0", str(made.directory)]
    assert [path.name for path in (root / "environments").iterdir()] == [made.directory.name]
    shutil.rmtree(registry)
    assert install_peers([environment], root) == [made], "nothing is asked of the registry again"


@pytest.mark.parametrize(
    ("lock", "modules", "message"),
    [
        ("fakepeer==3.0\n", ("fakepeer",), r"pip install failed \(status 1\)(.|\n)*fakepeer"),
        (LOCK, ("fakepeer.inner",), "first import failed(.|\n)*is not a package"),
    ],
)
def test_a_failed_one_leaves_nothing_behind(registry, make_environment, tmp_path, lock, modules, message):
    environment, root = make_environment(lock, modules=modules), tmp_path / "root"
    with pytest.raises(MissingDependencyError, match=message) as caught:
        install_peers([environment], root)
    assert str(caught.value).startswith("fake: ")
    assert not list((root / "environments").iterdir())
    assert find_installation(environment, root) is None


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Commands that are run, none of them really; ``failing`` holds words that make one fail."""
    record = SimpleNamespace(run=[], failing=set())

    def run(name: str, command: Any) -> str:
        record.run.append(list(command))
        if record.failing & set(command):
            record.failing.clear()
            raise MissingDependencyError("no")
        if "download" in command:
            folder = Path(command[command.index("--dest") + 1])
            folder.mkdir(parents=True)
            files = {
                "vendor/llama.cpp/convert_hf_to_gguf.py": "script",
                "vendor/llama.cpp/conversion/llama.py": "llama",
                "vendor/llama.cpp/gguf-py/gguf/__init__.py": "gguf",
                "vendor/llama.cpp/ggml/ggml.c": "much",
                "setup.py": "",
            }
            write_source(folder, "fakepeer", "1.0", files)
        return "[]" if "list" in command else ""

    monkeypatch.setattr(installation, "_run", run)
    return record


def test_what_is_half_made_is_never_taken(make_environment, tmp_path, commands):
    environment, root = make_environment(), tmp_path / "root"
    directory = environment_directory(environment, root)
    left = directory.with_name(f".{directory.name}.4194999-0123abcd.partial")
    (left / "bin").mkdir(parents=True)
    directory.mkdir()  # without its record: made by hand
    assert find_installation(environment, root) is None
    install_peers([environment], root)
    assert find_installation(environment, root) is not None
    assert commands.run, "it was made anew"


def test_torch_comes_without_cuda_and_first(make_environment, tmp_path, commands):
    environment = make_environment("torch==2.9.0\nfakepeer==1.0\n", torch="2.9.0", unwanted=("torchvision",))
    install_peers([environment], tmp_path / "root")
    words = [" ".join(command) for command in commands.run]
    torch = next(place for place, line in enumerate(words) if "torch==2.9.0+cpu" in line)
    packages = next(place for place, line in enumerate(words) if line.endswith("fakepeer"))
    unwanted = next(place for place, line in enumerate(words) if "uninstall --yes torchvision" in line)
    first = next(place for place, line in enumerate(words) if "import fakepeer" in line)
    assert torch < packages < unwanted < first
    assert CPU_TORCH_INDEX not in commands.run[torch]
    assert "--no-deps" not in commands.run[torch], "nothing else asks for what torch imports"
    assert str(environment.lock) in commands.run[packages]


def test_another_index_is_asked_for_that_build_of_torch(make_environment, tmp_path, commands):
    commands.failing.add("torch==2.9.0+cpu")
    install_peers([make_environment("torch==2.9.0\nfakepeer==1.0\n", torch="2.9.0")], tmp_path / "root")
    with_torch = [command for command in commands.run if "torch==2.9.0+cpu" in command]
    assert [CPU_TORCH_INDEX in command for command in with_torch] == [False, True]


def test_of_a_source_the_converter_is_kept(make_environment, tmp_path, commands):
    environment = make_environment(source="fakepeer", packages=())
    (made,) = install_peers([environment], tmp_path / "root")
    kept = made.directory / SOURCE_FOLDER
    assert sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()) == [
        "conversion/llama.py",
        "convert_hf_to_gguf.py",
        "gguf-py/gguf/__init__.py",
    ]
    assert not (made.directory / "download").exists()
    download = next(command for command in commands.run if "download" in command)
    assert download[-1] == "fakepeer==1.0"
    assert any(command[-1].endswith("fakepeer-1.0.tar.gz") and "install" in command for command in commands.run)


def test_a_source_cannot_write_elsewhere(make_environment, tmp_path, commands, monkeypatch):
    escaping = tarfile.TarInfo("x-1/vendor/llama.cpp/conversion/../../../../out")
    monkeypatch.setattr(tarfile.TarFile, "getmembers", lambda self: [escaping])
    with pytest.raises(tarfile.OutsideDestinationError):
        install_peers([make_environment(source="fakepeer", packages=())], tmp_path / "root")


def test_too_little_room_is_said_before_anything_is_fetched(make_environment, tmp_path, commands, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    environment = make_environment(installed_bytes=2 * 10**9)
    with pytest.raises(MachineError, match=r"fake: about 2\.5 GB are needed .*, 1\.0 GB are free.*--peers-dir"):
        install_peers([environment], tmp_path / "root")
    assert not commands.run


def test_a_folder_that_cannot_be_written_is_named(make_environment, tmp_path):
    (tmp_path / "root").write_text("a file")
    with pytest.raises(MachineError, match=r"root cannot be written: "):
        install_peers([make_environment()], tmp_path / "root")


def test_all_that_are_missing_are_named_with_one_command(make_environment, tmp_path):
    one, two = make_environment(), make_environment(name="other")
    with pytest.raises(MissingDependencyError) as caught:
        require_installed([one, two], tmp_path, told=False)
    assert "fake, other: not installed; llmc bench --install-peers fake,other makes environments" in str(caught.value)
    assert "--peers-dir" not in str(caught.value)
    with pytest.raises(MissingDependencyError, match=f"--install-peers fake --peers-dir {tmp_path} makes an env"):
        require_installed([one], tmp_path, told=True)


def test_the_record_is_plain(make_environment, tmp_path, commands):
    (made,) = install_peers([make_environment()], tmp_path / "root")
    record = json.loads((made.directory / "peer.json").read_text())
    assert record == {"name": "fake", "key": made.environment.key, "versions": {}, "disk_bytes": made.disk_bytes}


def test_sizes_are_for_people():
    assert (megabytes(420_000_000), megabytes(1_530_000_000)) == ("420 MB", "1.5 GB")
