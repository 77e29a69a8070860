"""The operators under AddressSanitizer and UndefinedBehaviorSanitizer: their tests once more, with another library.

ONNX Runtime and Python are not instrumented, so the sanitizers' own library is loaded before them; after it the C++
library, which it has to find for exceptions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmc.compiler.base.c_library import COMPILERS
from llmc.runtimes.kernels.library import SOURCES, VARIANTS

from .operators import WARNINGS

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
FILES = (
    "test_attention_operator.py",
    "test_block_activations.py",
    "test_block_matmul.py",
    "test_coded_weights.py",
    "test_gather_operator.py",
    "test_independent_rows.py",
    "test_instruction_sets.py",
    "test_matmul_operator.py",
)
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O1"
FAULTY = "int main(int argc, char **argv) { int a[2] = {0, 0}; (void)argv; return a[argc + 1]; }"


def sanitizer_libraries(folder: Path) -> str:
    """Skips where the compiler has no sanitizers that see a fault."""
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C compiler is installed")
    (folder / "faulty.c").write_text(FAULTY, encoding="utf-8")
    command = [compiler, *FLAGS.split(), "-o", str(folder / "faulty"), str(folder / "faulty.c")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"{compiler} has no sanitizers")
    faulty = subprocess.run([folder / "faulty"], capture_output=True, text=True, check=False)
    assert "out of bounds" in faulty.stderr, "the sanitizers do not see a fault"
    names = [f"-print-file-name={name}" for name in ("libasan.so", "libstdc++.so.6")]
    paths = [subprocess.run([compiler, n], capture_output=True, text=True, check=True).stdout.strip() for n in names]
    if not all(Path(path).is_absolute() for path in paths):
        pytest.skip(f"{compiler} has no sanitizers that can be loaded before Python")
    return " ".join(paths)


def test_memory_of_calls_is_freed(tmp_path: Path) -> None:
    """That of more calls at a time than are kept for, that of threads that have ended, and all of it in the end."""
    sanitizer_libraries(tmp_path)
    program, sources = tmp_path / "scratch", (FOLDER / "scratch_program.c", SOURCES / "core" / "scratch.c")
    compiler = next(path for name in COMPILERS if (path := shutil.which(name)))
    options = [*FLAGS.split(), *WARNINGS, "-std=c11", f"-I{SOURCES}", "-pthread"]
    subprocess.run([compiler, *options, "-o", str(program), *map(str, sources)], check=True)
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    if "LeakSanitizer has encountered a fatal error" in run.stderr:
        pytest.skip("leaks cannot be looked for here")
    assert (run.returncode, run.stdout) == (0, "done"), run.stderr[-3000:]


@pytest.mark.parametrize("name", [variant.name for variant in VARIANTS if variant.unsupported_reason() is None])
def test_the_operators_touch_no_memory_but_their_own(name: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "LD_PRELOAD": sanitizer_libraries(tmp_path),
        "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0",
        "LLMC_TEST_KERNEL_FLAGS": FLAGS,
        "OMP_NUM_THREADS": "1",
    }
    # Without capture: a sanitizer ends the process, and what pytest holds back would be lost.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-k", name]
    files = [str(FOLDER / name) for name in FILES]
    run = subprocess.run(
        [*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=800
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
