"""A bundle of tiny wheels: cut into parts, installed by sh in a folder of its own, refused when tampered with."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.runtimes.bundle import gpu_bundle
from llmc.runtimes.bundle.gpu_bundle import Bundle, main, parse_size, requirements_with, write_bundle

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PART_SIZE = 4096


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
    return write_bundle(wheels, [extra], tmp_path / "bundle", part_size=PART_SIZE, python=PYTHON)


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
    assert list(bundle.parts) == [f"bundle.part{number:02d}" for number in range(len(bundle.parts))]
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
    assert names == sorted(names) == list(bundle.members)
    assert names == [
        "files/engine/llmc.json",
        "files/engine/sub dir/run.sh",
        "wheels/alpha-1.0-py3-none-any.whl",
        "wheels/beta-1.0-py3-none-any.whl",
    ]
    assert {(entry.mtime, entry.uid, entry.uname) for entry in entries} == {(0, 0, "")}
    assert [entry.mode for entry in entries] == [0o644, 0o755, 0o644, 0o644]


def test_the_same_files_give_the_same_parts(wheels: list[Path], extra: Path, bundle: Bundle, tmp_path: Path) -> None:
    for path in (*wheels, extra / "llmc.json"):
        os.utime(path, (1, 1))
    again = write_bundle(wheels[::-1], [extra], tmp_path / "again", part_size=PART_SIZE, python=PYTHON)
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
    newer = write_bundle(wheels[1:], [], bundle.directory, part_size=PART_SIZE, python=PYTHON)
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
    (bundle.directory / "bundle.part01").unlink()
    assert "bundle.part01 is missing" in refused(bundle, tmp_path / "prefix")
    (bundle.directory / "SHA256SUMS").unlink()
    assert "SHA256SUMS is not in" in refused(bundle, tmp_path / "prefix")


def test_no_pip(bundle: Bundle, tmp_path: Path) -> None:
    python = tmp_path / "python-without-pip"
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] && exit 1\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    assert "has no pip" in refused(bundle, tmp_path / "prefix", PYTHON=str(python))


def test_another_python(wheels: list[Path], tmp_path: Path) -> None:
    other = write_bundle(wheels, [], tmp_path / "other", part_size=PART_SIZE, python="3.99")
    assert f"is Python {PYTHON}, and the wheels are for 3.99" in refused(other, tmp_path / "prefix")
    assert "does not run" in refused(other, tmp_path / "prefix", PYTHON="/nothing/python3")


def test_a_wheel_that_pip_refuses(tmp_path: Path) -> None:
    wheel = tmp_path / "broken-1.0-py3-none-any.whl"
    wheel.write_bytes(b"no archive")
    broken = write_bundle([wheel], [], tmp_path / "broken", part_size=PART_SIZE, python=PYTHON)
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
    with pytest.raises(ArtifactError, match="mine, which is no part of a bundle"):
        write_bundle(wheels, [], tmp_path / "out", part_size=PART_SIZE, python=PYTHON)


def test_files_that_cannot_be_taken(wheels: list[Path], extra: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / extra.name
    other.mkdir(parents=True)
    for files, says in (([tmp_path / "nothing"], "does not exist"), ([extra, other], "are called engine")):
        with pytest.raises(UsageError, match=says):
            write_bundle(wheels, files, tmp_path / "out", part_size=PART_SIZE, python=PYTHON)
    with pytest.raises(UsageError, match="at least 1K"):
        write_bundle(wheels, [], tmp_path / "out", part_size=100, python=PYTHON)


def test_sizes() -> None:
    assert [parse_size(text) for text in ("7", "2k", "60M", "1G")] == [7, 2048, 60 << 20, 1 << 30]
    for text in ("", "0", "-1", "60 MB", "1.5G"):
        with pytest.raises(UsageError, match="60M"):
            parse_size(text)


def test_an_extra_replaces_a_pinned_version() -> None:
    base = ("onnx-ir==1.1.0", "gguf==0.19.0")
    assert requirements_with(["ONNX_IR==2.0", "rich==15.0.0"], base) == (
        "ONNX_IR==2.0",
        "gguf==0.19.0",
        "rich==15.0.0",
    )
    with pytest.raises(UsageError, match="NAME==VERSION"):
        requirements_with(["rich"], base)
    assert all(requirement.count("==") == 1 for requirement in requirements_with([]))


def test_the_command(wheels: list[Path], extra: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels are asked of pip for the machine's Python, without dependencies; llmc's own lies with them."""
    asked: list[tuple[str, ...]] = []

    def run(arguments: tuple[str, ...], failure: str, environment: object = None) -> None:
        asked.append(arguments)
        folder = Path(arguments[arguments.index("--outdir" if arguments[1] == "build" else "-d") + 1])
        made = "llmc_toolchain" if arguments[1] == "build" else arguments[-1].partition("=")[0].replace("-", "_")
        make_wheel(folder, made, b"")

    monkeypatch.setattr(gpu_bundle, "_run", run)
    output = tmp_path / "out"
    arguments = ["-o", str(output), "--part-size", "4K", "--python", "3.12", "--extra", "extra-one==1.0"]
    assert main([*arguments, "--with", str(extra)]) == 0
    downloads = [each for each in asked if "download" in each]
    assert [each[-1] for each in downloads] == [*gpu_bundle.WHEELS, "extra-one==1.0"]
    for each in downloads:
        assert {"--no-deps", "--only-binary=:all:", "manylinux_2_28_x86_64", "3.12"} <= set(each)
    assert "Python 3.12 with pip" in (output / "install.sh").read_text()
    assert (output / "bundle.part00").is_file()


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-o", str(tmp_path / "out"), "--python", "python3"]) == 2
    assert "write it as 3.12" in capsys.readouterr().err
    assert main(["-o", str(tmp_path / "out"), "--extra", "rich"]) == 2
    assert main(["-o", str(tmp_path / "out"), "--with", str(tmp_path / "nothing")]) == 2
    assert not (tmp_path / "out").exists()


def test_a_download_that_fails_ends_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        ArtifactError, match=r"no wheel of nothing-here==1.0 for Python 3.12 can be had: ERROR: No match"
    ):
        gpu_bundle.download_wheels(["nothing-here==1.0"], "3.12", tmp_path)
