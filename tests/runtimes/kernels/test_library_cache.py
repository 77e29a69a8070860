"""The library of kernels: its name says what it was made of, and every way not to get one is a reason."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base import c_library
from llmc.runtimes.kernels import library as cpu_kernels
from llmc.runtimes.kernels.library import (
    FLAGS,
    VARIANTS,
    KernelsUnavailable,
    Variant,
    default_variant,
    kernel_library,
)

COMPILER = """#!/bin/sh
# A compiler that writes its arguments where the library should be.
[ "$1" = --version ] && { echo 'VERSION'; exit 0; }
echo "$@" >> "$0.log"
BODY
"""
WRITE = """while [ "$1" != -o ]; do shift; done; echo "compiled" > "$2" """
FLAGS_OF = {"avx512_vnni": "-mavx512vnni"}
BEST = VARIANTS[0]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sources and a header in a folder of their own, for a processor that has everything."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "core").mkdir()
    for name in ("a.c", "core/b.c", "core/a.h"):
        (folder / name).write_text(f"/* {name} */")
    monkeypatch.setattr(cpu_kernels, "SOURCES", folder)
    monkeypatch.setattr(cpu_kernels.platform, "system", lambda: "Linux")
    monkeypatch.setattr(cpu_kernels.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu_kernels, "_cpu_flags", lambda: frozenset({*BEST.needed, "sse"}))
    return folder


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a compiler on the path; by default one that works."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    found = shutil.which
    monkeypatch.setattr(c_library.shutil, "which", lambda name: found(name, path=str(folder)))

    def make(body: str = WRITE, name: str = "cc", version: str = "cc 1.0") -> Path:
        path = folder / name
        path.write_text(COMPILER.replace("BODY", body).replace("VERSION", version))
        path.chmod(0o755)
        return path

    make()
    return make


def library(cache: Path) -> Path:
    """As a new process finds it."""
    c_library._fingerprint.cache_clear()
    return kernel_library(cache)


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    c_library._fingerprint.cache_clear()


def test_it_is_compiled_once_from_all_sources(sources: Path, compiler: Any, tmp_path: Path) -> None:
    first = library(tmp_path / "cache")
    assert library(tmp_path / "cache") == first
    assert first.read_text() == "compiled\n"
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    (call,) = (tmp_path / "bin" / "cc.log").read_text().splitlines()
    assert call.startswith(" ".join((*FLAGS, *BEST.flags)))
    assert f'-DLLMC_VEC="vec_avx512.h" -DLLMC_DOT="dot_vnni.h" -I{sources} ' in call
    assert call.endswith(f"{sources / 'a.c'} {sources / 'core/b.c'} -lm")


def test_its_name_follows_every_source(sources: Path, compiler: Any, tmp_path: Path) -> None:
    """A byte of a source or of a header, a file that is renamed, one more: it is never stale."""
    names = [library(tmp_path).name]
    for change in (
        lambda: (sources / "a.c").write_text("/* A.c */"),
        lambda: (sources / "core" / "a.h").write_text("/* A.h */"),
        lambda: (sources / "core" / "b.c").rename(sources / "core" / "c.c"),
        lambda: (sources / "core" / "c.c").rename(sources / "c.c"),
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
    names = ("a.c", "core/a.h", "core/b.c")
    text = "".join((sources / name).read_text() for name in names)
    for name, part in zip(names, (text[:3], text[3:20], text[20:]), strict=True):
        (sources / name).write_text(part)
    assert library(tmp_path).name != whole


def test_its_name_follows_the_options(
    sources: Path, compiler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {library(tmp_path).name}
    for change in ({"name": "more"}, {"flags": (*BEST.flags, "-g")}, {"vectors": "avx2"}, {"dots": "avx2"}):
        names.add(kernel_library(tmp_path, replace(BEST, **change)).name)
    monkeypatch.setattr(cpu_kernels, "FLAGS", ("-O2", *FLAGS[1:]))
    names.add(library(tmp_path).name)
    assert len(names) == 6
    assert all(name.startswith(("llmc-cpu-avx512vnni-", "llmc-cpu-more-")) for name in names)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_row_of_the_table(variant: Variant) -> None:
    """The compiler is told of the instructions that the processor is asked for; both headers are there."""
    assert {FLAGS_OF.get(name, f"-m{name}") for name in variant.needed} == set(variant.flags)
    for header in (f"vec_{variant.vectors}.h", f"dot_{variant.dots}.h"):
        assert (cpu_kernels.SOURCES / "isa" / header).exists()


@pytest.mark.parametrize("lacking", BEST.needed)
def test_a_processor_that_lacks_one_set(sources: Path, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    monkeypatch.setattr(cpu_kernels, "_cpu_flags", lambda: frozenset({*BEST.needed} - {lacking}))
    assert BEST.unsupported_reason() == f"the processor lacks {lacking}"
    for asked in (None, BEST):
        with pytest.raises(KernelsUnavailable, match=f"^the processor lacks {lacking}$"):
            kernel_library(variant=asked)


def test_other_systems(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_variant() is BEST
    for system, machine in (("Linux", "aarch64"), ("Darwin", "x86_64")):
        monkeypatch.setattr(cpu_kernels.platform, "system", lambda system=system: system)
        monkeypatch.setattr(cpu_kernels.platform, "machine", lambda machine=machine: machine)
        assert BEST.unsupported_reason() == f"there are none for {system} on {machine}"
        with pytest.raises(KernelsUnavailable, match=f"^there are none for {system} on {machine}$"):
            default_variant()


def test_the_best_that_the_machine_runs_is_the_default(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that are faster than ONNX Runtime's own kernels; the others have to be named."""
    small, slow = (
        replace(BEST, name="small", needed=("sse",)),
        replace(BEST, name="slow", needed=(), default=False),
    )
    monkeypatch.setattr(cpu_kernels, "VARIANTS", (BEST, small, slow))
    assert default_variant() is BEST
    monkeypatch.setattr(cpu_kernels, "_cpu_flags", lambda: frozenset({"sse"}))
    assert default_variant() is small
    monkeypatch.setattr(cpu_kernels, "_cpu_flags", lambda: frozenset({"neon"}))
    with pytest.raises(KernelsUnavailable, match=r"^the processor lacks avx512f, .*; the processor lacks sse$"):
        default_variant()
    assert slow.unsupported_reason() is None


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

    c_library._fingerprint.cache_clear()
    c_library._fingerprint(str(tmp_path / "bin" / "cc"), sources, BEST.options)
    monkeypatch.setattr(c_library.subprocess, "run", run)
    with pytest.raises(KernelsUnavailable, match=r"they could not be compiled: .* timed out after 300 seconds"):
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


def test_a_home_that_can_only_be_read_gives_what_it_has(
    tmp_path: Path, sources: Path, compiler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler()
    home, other = tmp_path / "home", tmp_path / "other"
    monkeypatch.setattr(c_library, "home_cache", lambda name: home / name)
    monkeypatch.setattr(c_library, "user_cache", lambda name: other / name)
    elsewhere = kernel_library()
    assert elsewhere.parent == other / "kernels"
    (home / "kernels").mkdir(parents=True)
    shutil.copy(elsewhere, home / "kernels")
    assert kernel_library() == home / "kernels" / elsewhere.name
    monkeypatch.setattr(c_library, "home_cache", lambda name: None)
    assert kernel_library() == elsewhere
