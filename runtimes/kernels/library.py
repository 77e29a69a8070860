"""llmc's own operators for ONNX Runtime on the CPU: compiled once per machine, from the sources beside this file.

In: the C sources in ``cpu/``. Out: a shared library in the user's cache, or the reason why there is none.

    cpu/ort/     what ONNX Runtime calls: operators that read their inputs and refuse what ``cpu/contract.h`` excludes
    cpu/core/    their arithmetic, written over vectors and dot products
    cpu/isa/     vectors and dot products of each instruction set

An artifact carries no machine code. The library is compiled where an engine is opened first, and found in the cache
afterwards (``compiler/base/c_library.py``). An instruction set is two headers in ``cpu/isa`` (``vec.h`` and ``dot.h``
say what they define) and a row of :data:`VARIANTS`.
"""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

from llmc.compiler.base.c_library import NotCompiled, c_library
from llmc.runtimes.machine.fingerprint import cpu_flags, read_cpuinfo

SOURCES = Path(__file__).parent / "cpu"
FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-fvisibility=hidden")


@dataclass(frozen=True)
class Variant:
    """The operators for one instruction set.

    Attributes:
        vectors: Its header of vectors: ``isa/vec_<vectors>.h``.
        dots: Its header of products with packed weights: ``isa/dot_<dots>.h``.
        machine: As ``platform.machine()`` names it; None: any.
        needed: The processor's features that it uses, as Linux names them.
        flags: What the compiler has to be told for it.
        default: Whether an engine is opened with it where none is named: it is faster than ONNX Runtime's kernels.
    """

    name: str
    vectors: str
    dots: str
    machine: str | None
    needed: tuple[str, ...]
    flags: tuple[str, ...]
    default: bool

    @property
    def options(self) -> tuple[str, ...]:
        """Of the compiler, but for where the sources are."""
        headers = (f'-DLLMC_VEC="vec_{self.vectors}.h"', f'-DLLMC_DOT="dot_{self.dots}.h"')
        return (*FLAGS, *self.flags, *headers)

    def unsupported_reason(self) -> str | None:
        """Why this machine cannot run it; None when it can."""
        if platform.system() != "Linux" or self.machine not in {None, platform.machine()}:
            return f"there are none for {platform.system()} on {platform.machine()}"
        missing = [flag for flag in self.needed if flag not in _cpu_flags()]
        return f"the processor lacks {', '.join(missing)}" if missing else None


VARIANTS = (
    Variant(
        "avx512vnni",
        vectors="avx512",
        dots="vnni",
        machine="x86_64",
        needed=("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "f16c", "fma"),
        flags=("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mf16c", "-mfma"),
        default=True,
    ),
    Variant("portable", vectors="portable", dots="portable", machine=None, needed=(), flags=(), default=False),
)
"""The best first. ``portable`` is there to be compared with, and for who names it: ONNX Runtime's kernels are faster.

SmolLM2-135M int4, CPU time of one thread on an AMD EPYC (Zen 5), gcc 12.2, 30 November 2026: a prompt of 512 tokens
takes 10.2 s with it (6.3 s with -mavx2 -mfma), 0.70 s with ONNX Runtime's kernels and 0.32 s with avx512vnni; a
decode step 33 ms (24), 6.8 and 5.9 ms.
"""


class KernelsUnavailable(Exception):
    """There is no kernel library for this machine; the text says why."""


def default_variant() -> Variant:
    """The best variant that this machine runs, of those that are faster than ONNX Runtime's own kernels.

    Raises:
        KernelsUnavailable: it runs none of them.
    """
    reasons = {variant: variant.unsupported_reason() for variant in VARIANTS if variant.default}
    for variant, reason in reasons.items():
        if reason is None:
            return variant
    raise KernelsUnavailable("; ".join(dict.fromkeys(str(reason) for reason in reasons.values())))


def kernel_library(cache: Path | None = None, variant: Variant | None = None) -> Path:
    """The compiled library.

    Args:
        cache: Directory to keep it in; None: the user's cache.
        variant: None: :func:`default_variant`.

    Raises:
        KernelsUnavailable: the processor is not supported, there is no C compiler, or it failed.
    """
    variant = variant or default_variant()
    if (reason := variant.unsupported_reason()) is not None:
        raise KernelsUnavailable(reason)
    try:
        return c_library("the CPU kernels", f"llmc-cpu-{variant.name}", SOURCES, variant.options, cache)
    except NotCompiled as error:
        raise KernelsUnavailable(str(error)) from error


@functools.cache
def _cpu_flags() -> frozenset[str]:
    return cpu_flags(read_cpuinfo())
