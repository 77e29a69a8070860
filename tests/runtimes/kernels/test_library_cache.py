"""The library of kernels: its name says what it was made of, and every way not to get one is a reason."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llmc.runtimes.kernels import library as cpu_kernels
from llmc.runtimes.kernels.library import FLAGS, NEEDED, KernelsUnavailable, kernel_library, unsupported_reason

COMPILER = """#!/bin/sh
# A compiler that writes its arguments where the library should be.
[ "$1" = --version ] && { echo 'VERSION'; exit 0; }
echo "$@" >> "$0.log"
BODY
"""
WRITE = """while [ "$1" != -o ]; do shift; done; echo "compiled" > "$2" """
FLAGS_OF = {"avx512_vnni": "-mavx512vnni"}


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sources and a header in a folder of their own, for a processor that has everything."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    for name in ("a.c", "b.c", "a.h"):
        (folder / name).write_text(f"/* {name} */")
    monkeypatch.setattr(cpu_kernels, "SOURCES", folder)
    monkeypatch.setattr(cpu_kernels.platform, "system", lambda: "Linux")
    monkeypatch.setattr(cpu_kernels.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu_kernels, "_cpu_flags", lambda: frozenset({*NEEDED, "sse"}))
    return folder


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a compiler on the path; by default one that works."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    found = shutil.which
    monkeypatch.setattr(cpu_kernels.shutil, "which", lambda name: found(name, path=str(folder)))

    def make(body: str = WRITE, name: str = "cc", version: str = "cc 1.0") -> Path:
        path = folder / name
        path.write_text(COMPILER.replace("BODY", body).replace("VERSION", version))
        path.chmod(0o755)
        return path

    make()
    return make


def library(cache: Path) -> Path:
    """As a new process finds it."""
    cpu_kernels._fingerprint.cache_clear()
    return kernel_library(cache)


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    cpu_kernels._fingerprint.cache_clear()


def test_it_is_compiled_once_from_all_sources(sources: Path, compiler: Any, tmp_path: Path) -> None:
    first = library(tmp_path / "cache")
    assert library(tmp_path / "cache") == first
    assert first.read_text() == "compiled\n"
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    (call,) = (tmp_path / "bin" / "cc.log").read_text().splitlines()
    assert call.startswith(" ".join(FLAGS))
    assert call.endswith(f"{sources / 'a.c'} {sources / 'b.c'} -lm")


def test_its_name_follows_every_source(sources: Path, compiler: Any, tmp_path: Path) -> None:
    """A byte of a source or of a header, a file that is renamed, one more: it is never stale."""
    names = [library(tmp_path).name]
    for change in (
        lambda: (sources / "a.c").write_text("/* A.c */"),
        lambda: (sources / "a.h").write_text("/* A.h */"),
        lambda: (sources / "b.c").rename(sources / "c.c"),
        lambda: (sources / "d.h").write_text(""),
        lambda: compiler(version="cc 1.1"),
    ):
        change()
        names.append(library(tmp_path).name)
    assert len(set(names)) == len(names)
    (sources / "notes.txt").write_text("no source")
    assert library(tmp_path).name == names[-1]


def test_its_name_says_where_a_source_ends(sources: Path, compiler: Any, tmp_path: Path) -> None:
    whole = library(tmp_path).name
    text = (sources / "a.c").read_text() + (sources / "a.h").read_text() + (sources / "b.c").read_text()
    for name, part in (("a.c", text[:3]), ("a.h", text[3:20]), ("b.c", text[20:])):
        (sources / name).write_text(part)
    assert library(tmp_path).name != whole


def test_its_name_follows_the_options(
    sources: Path, compiler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = library(tmp_path).name
    monkeypatch.setattr(cpu_kernels, "FLAGS", ("-O2", *FLAGS[1:]))
    assert library(tmp_path).name != before


def test_the_options_are_the_instructions_that_are_asked_for() -> None:
    assert {FLAGS_OF.get(name, f"-m{name}") for name in NEEDED} == {flag for flag in FLAGS if flag.startswith("-m")}


@pytest.mark.parametrize("lacking", NEEDED)
def test_a_processor_that_lacks_one_set(sources: Path, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    monkeypatch.setattr(cpu_kernels, "_cpu_flags", lambda: frozenset({*NEEDED} - {lacking}))
    assert unsupported_reason() == f"the processor lacks {lacking}"
    with pytest.raises(KernelsUnavailable, match=f"the processor lacks {lacking}$"):
        kernel_library()


def test_other_systems(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unsupported_reason() is None
    monkeypatch.setattr(cpu_kernels.platform, "machine", lambda: "aarch64")
    assert unsupported_reason() == "there are none for Linux on aarch64"
    monkeypatch.setattr(cpu_kernels.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu_kernels.platform, "system", lambda: "Darwin")
    assert unsupported_reason() == "there are none for Darwin on x86_64"


def test_any_of_the_compilers_will_do(sources: Path, compiler: Any, tmp_path: Path) -> None:
    (tmp_path / "bin" / "cc").unlink()
    with pytest.raises(KernelsUnavailable, match=r"no C compiler is installed \(cc, gcc, clang\)"):
        library(tmp_path / "cache")
    compiler(name="clang")
    assert library(tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('echo "x" > "$0.out"; echo "a.c:1: no such thing" >&2; echo "more" >&2; exit 1', "a.c:1: no such thing$"),
        ("exit 3", "could not compile them: .*exit status 3"),
        ('while [ "$1" != -o ]; do shift; done; echo half > "$2"; echo "disk full" >&2; exit 1', "disk full$"),
    ],
)
def test_a_compiler_that_fails_leaves_nothing(
    sources: Path, compiler: Any, tmp_path: Path, body: str, reason: str
) -> None:
    compiler(body)
    with pytest.raises(KernelsUnavailable, match=reason):
        library(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiler_that_hangs_is_a_reason(
    sources: Path, compiler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **options: Any) -> Any:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    cpu_kernels._fingerprint.cache_clear()
    cpu_kernels._fingerprint(str(tmp_path / "bin" / "cc"))
    monkeypatch.setattr(cpu_kernels.subprocess, "run", run)
    with pytest.raises(KernelsUnavailable, match=r"they could not be compiled: .* timed out after 120 seconds"):
        kernel_library(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_a_reason(sources: Path, compiler: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(KernelsUnavailable, match="they could not be compiled: "):
        library(tmp_path / "cache")


def test_a_compiler_that_does_not_run_is_a_reason(sources: Path, compiler: Any, tmp_path: Path) -> None:
    (tmp_path / "bin" / "cc").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(KernelsUnavailable, match="cc does not run: "):
        library(tmp_path / "cache")
