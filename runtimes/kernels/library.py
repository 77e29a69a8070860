"""llmc's own operators for ONNX Runtime on the CPU: compiled once per machine, from the source beside this file.

In: the C sources in ``kernels/``. Out: a shared library in the user's cache, or the reason why there is none.

An artifact carries no machine code. The library is compiled where an engine is opened first, and found in the cache
afterwards; its name holds a hash of the sources and of the compiler's version, so it is never stale.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)
SOURCES = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "f16c", "fma")
FLAGS = (
    "-O3", "-std=c11", "-fPIC", "-shared", "-fvisibility=hidden", "-mavx512f", "-mavx512bw", "-mavx512vl",
    "-mavx512dq", "-mavx512vnni", "-mf16c", "-mfma",
)  # fmt: skip
COMPILE_SECONDS = 120


class KernelsUnavailable(Exception):
    """There is no kernel library for this machine; the text says why."""


def unsupported_reason() -> str | None:
    """Why this processor cannot run the kernels; None when it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"there are none for {platform.system()} on {platform.machine()}"
    missing = [flag for flag in NEEDED if flag not in _cpu_flags()]
    return f"the processor lacks {', '.join(missing)}" if missing else None


def kernel_library(cache: Path | None = None) -> Path:
    """The compiled library.

    Args:
        cache: Directory to keep it in; None: the user's cache.

    Raises:
        KernelsUnavailable: the processor is not supported, there is no C compiler, or it failed.
    """
    if (reason := unsupported_reason()) is not None:
        raise KernelsUnavailable(reason)
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise KernelsUnavailable(f"no C compiler is installed ({', '.join(COMPILERS)})")
    directory = cache or Path.home() / ".cache" / "llmc" / "kernels"
    library = directory / f"llmc-cpu-{_fingerprint(compiler)}.so"
    if not library.exists():
        _compile(compiler, library)
    return library


def _compile(compiler: str, library: Path) -> None:
    """Compile next to the final name, then rename: two processes may do this at once."""
    log.info("compiling the CPU kernels with %s", compiler)
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=library.parent, suffix=".so.partial")
        os.close(handle)
        temporary = Path(name)
        try:
            sources = [str(path) for path in sorted(SOURCES.glob("*.c"))]
            command = [compiler, *FLAGS, "-o", str(temporary), *sources, "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
            temporary.replace(library)
        finally:
            temporary.unlink(missing_ok=True)
    except subprocess.CalledProcessError as error:
        first = (error.stderr or "").strip().splitlines()[:1]
        raise KernelsUnavailable(f"{compiler} could not compile them: {first[0] if first else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailable(f"they could not be compiled: {error}") from error


@functools.cache
def _fingerprint(compiler: str) -> str:
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    try:
        version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=COMPILE_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelsUnavailable(f"{compiler} does not run: {error}") from error
    digest.update(version.stdout)
    return digest.hexdigest()[:16]


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())
