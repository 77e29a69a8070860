"""A bundle of tiny wheels: cut into parts, installed by sh in a folder of its own, refused when tampered with."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PART_SIZE = 4096
PACK = Path(__file__).parent / "gpu" / "bundle" / "pack.sh"


def make_wheel(folder: Path, name: str, content: bytes) -> Path:
    """A wheel with one module, its metadata and a record."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{each},,\n" for each in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in {**files, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(zipfile.ZipInfo(each), data)
    return path


@dataclass(frozen=True)
class Bundle:
    directory: Path
    parts: dict[str, int]


def write_bundle(
    wheels: list[Path], files: list[Path], output: Path, *, part_size: int | str = PART_SIZE, python: str = PYTHON
) -> Bundle:
    """What the script makes of the wheels; what it refuses is a RuntimeError with its sentence."""
    with tempfile.TemporaryDirectory() as folder:
        for wheel in wheels:
            shutil.copy(wheel, folder)
        command = ["bash", str(PACK), str(output), str(part_size), python, folder, *map(str, files)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        assert done.stderr.count("error: ") == 1
        raise RuntimeError(done.stderr)
    return Bundle(output, {path.name: path.stat().st_size for path in sorted(output.glob("bundle.part*"))})


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "wheels"
    folder.mkdir()
    # Over two parts long, so that a wheel lies in several.
    long = b"VALUE = 'long'\n" + b"".join(b"# %d\n" % number for number in range(2000))
    return [make_wheel(folder, "beta", long), make_wheel(folder, "alpha", b"VALUE = 'short'\n")]


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    folder = tmp_path / "engine"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__" / "x.pyc").write_bytes(b"x")
    (folder / "llmc.json").write_text("{}")
    (folder / "sub dir").mkdir()
    (folder / "sub dir" / "run.sh").write_text("#!/bin/sh\n")
    (folder / "sub dir" / "run.sh").chmod(0o700)
    return folder


@pytest.fixture
def bundle(wheels: list[Path], extra: Path, tmp_path: Path) -> Bundle:
    return write_bundle(wheels, [extra], tmp_path / "bundle")


def install(bundle: Bundle, prefix: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": os.environ["PATH"], "HOME": str(prefix.parent), "PYTHON": sys.executable}
    return subprocess.run(
        ["sh", str(bundle.directory / "install.sh"), str(prefix)],
        env={**clean, **environment},
        cwd=prefix.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def refused(bundle: Bundle, prefix: Path, **environment: str) -> str:
    done = install(bundle, prefix, **environment)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("error: ") == 1
    return done.stderr


def test_parts_and_sums(bundle: Bundle) -> None:
    assert list(bundle.parts) == [f"bundle.part{number:03d}" for number in range(len(bundle.parts))]
    assert len(bundle.parts) > 3
    assert all(size == PART_SIZE for size in list(bundle.parts.values())[:-1])
    assert 0 < list(bundle.parts.values())[-1] <= PART_SIZE
    sums = dict(reversed(line.split("  ")) for line in (bundle.directory / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256((bundle.directory / name).read_bytes()).hexdigest() for name in bundle.parts}


def test_the_archive(bundle: Bundle, tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar"
    whole.write_bytes(b"".join((bundle.directory / name).read_bytes() for name in bundle.parts))
    with tarfile.open(whole) as archive:
        entries = archive.getmembers()
    names = [entry.name for entry in entries]
    assert names == sorted(names)
    assert names == [
        "files/engine/llmc.json",
        "files/engine/sub dir/run.sh",
        "wheels/alpha-1.0-py3-none-any.whl",
        "wheels/beta-1.0-py3-none-any.whl",
    ]
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname) for entry in entries} == {(0, 0, 0, "")}
    assert [entry.mode for entry in entries] == [0o644, 0o755, 0o644, 0o644]


def test_the_same_files_give_the_same_parts(wheels: list[Path], extra: Path, bundle: Bundle, tmp_path: Path) -> None:
    for path in (*wheels, extra / "llmc.json"):
        os.utime(path, (1, 1))
    again = write_bundle(wheels[::-1], [extra], tmp_path / "again")
    for path in sorted(bundle.directory.iterdir()):
        assert path.read_bytes() == (again.directory / path.name).read_bytes()


def test_install(bundle: Bundle, tmp_path: Path) -> None:
    prefix = tmp_path / "a prefix"
    done = install(bundle, prefix)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"export PYTHONPATH='{prefix}/site'${{PYTHONPATH:+:$PYTHONPATH}}"
    # What it prints is all that a shell needs.
    code = "import alpha, beta; print(alpha.VALUE, beta.VALUE)"
    shell = f'{done.stdout}\nexec "{sys.executable}" -c "{code}"'
    used = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert used.stdout == "short long\n", used.stderr
    assert (prefix / "files" / "engine" / "sub dir" / "run.sh").stat().st_mode & 0o100


def test_install_again_replaces(bundle: Bundle, wheels: list[Path], tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    assert install(bundle, prefix).returncode == 0
    wheels[1] = make_wheel(wheels[1].parent, "alpha", b"VALUE = 'newer'\n")
    newer = write_bundle(wheels[1:], [], bundle.directory)
    assert install(newer, prefix).returncode == 0
    assert (prefix / "site" / "alpha.py").read_text() == "VALUE = 'newer'\n"
    assert not (prefix / "site" / "beta.py").exists()
    assert not (prefix / "files").exists()


@pytest.mark.parametrize("index", [0, 2, -1])
def test_a_tampered_part_is_refused(bundle: Bundle, tmp_path: Path, index: int) -> None:
    part = bundle.directory / list(bundle.parts)[index]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert f"{part.name} is damaged" in refused(bundle, tmp_path / "prefix")
    assert not (tmp_path / "prefix").exists()


def test_a_missing_part_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.directory / "bundle.part001").unlink()
    assert "bundle.part001 is missing" in refused(bundle, tmp_path / "prefix")
    (bundle.directory / "SHA256SUMS").unlink()
    assert "SHA256SUMS is not in" in refused(bundle, tmp_path / "prefix")


def test_no_pip(bundle: Bundle, tmp_path: Path) -> None:
    python = tmp_path / "python-without-pip"
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] && exit 1\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    assert "has no pip" in refused(bundle, tmp_path / "prefix", PYTHON=str(python))


def test_another_python(wheels: list[Path], tmp_path: Path) -> None:
    other = write_bundle(wheels, [], tmp_path / "other", python="3.99")
    assert f"is Python {PYTHON}, and the wheels are for 3.99" in refused(other, tmp_path / "prefix")
    assert "does not run" in refused(other, tmp_path / "prefix", PYTHON="/nothing/python3")


def test_a_wheel_that_pip_refuses(tmp_path: Path) -> None:
    wheel = tmp_path / "broken-1.0-py3-none-any.whl"
    wheel.write_bytes(b"no archive")
    broken = write_bundle([wheel], [], tmp_path / "broken")
    done = install(broken, tmp_path / "prefix")
    assert done.returncode == 1
    assert "pip did not install the wheels" in done.stderr


def test_a_folder_of_somebody_else_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    prefix = tmp_path / "home"
    (prefix / "site").mkdir(parents=True)
    (prefix / "site" / "mine").write_text("mine")
    assert "was not made by this script" in refused(bundle, prefix)
    assert (prefix / "site" / "mine").read_text() == "mine"


def test_a_folder_with_something_else_is_no_output(wheels: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(RuntimeError, match="mine, which is no part of a bundle"):
        write_bundle(wheels, [], tmp_path / "out")


def test_what_cannot_be_packed(wheels: list[Path], extra: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / extra.name
    other.mkdir(parents=True)
    for files, says in (([tmp_path / "nothing"], "does not exist"), ([extra, other], "are called engine")):
        with pytest.raises(RuntimeError, match=says):
            write_bundle(wheels, files, tmp_path / "out")
    for size in ("", "0", "-1", "60 MB", "1.5G"):
        with pytest.raises(RuntimeError, match="write it as 60M"):
            write_bundle(wheels, [], tmp_path / "out", part_size=size)
    with pytest.raises(RuntimeError, match=r"write it as 3\.12"):
        write_bundle(wheels, [], tmp_path / "out", python="python3")
    assert not (tmp_path / "out").exists()
