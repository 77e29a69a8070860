"""An artifact in onnxruntime-genai: the same greedy tokens as llmc's own loop on the same graph.

Run as a program it does so for an artifact of any model: ``python -m tests.end_to_end.test_neighbours DIR [DIR …]``.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import compile_model, optimize
from llmc.compiler.driver.genai_config import GENAI_CONFIG
from llmc.runtimes.bench.workers.peer_genai import GenaiTarget
from llmc.runtimes.engines import open_session
from llmc.runtimes.evaluation.scored_rows import session_source
from llmc.runtimes.generation.text import TextTokenizer
from llmc.runtimes.kernels.library import KernelsUnavailable, kernel_library

from ..generation import generate
from ..shared import Shared
from .conftest import Built
from .genai_loop import THREADS, GenaiLoop, before_the_end
from .tiny import SIZES, shared_model, shared_portable

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_genai") is None,
    reason="onnxruntime_genai is not installed (pip install onnxruntime-genai)",
)
TOKENS = 64
CHUNK = 16


def own_tokens(
    directory: Path, prompts: Sequence[Sequence[int]], count: int, ends: set[int], chunk: int | None = None
) -> list[list[int]]:
    """What llmc's loop makes of the same prompts."""
    session = open_session(directory, threads=THREADS)
    try:
        made = generate(session, prompts, max_tokens=count, eos_ids=ends, prefill_chunk=chunk)
        return [before_the_end(row, ends) for row in made.tokens]
    finally:
        session.close()


# --- SmolLM2 --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(smollm2: Built) -> Path:
    """A target graph: llmc's own session opens ``model.onnx`` there, too."""
    return smollm2.target(precision="int4")


@pytest.fixture(scope="module")
def loop(directory: Path) -> GenaiLoop:
    return GenaiLoop(directory)


@pytest.fixture(scope="module")
def prompts(smollm2: Built) -> list[list[int]]:
    """41, 23 and 57 tokens of a story, so that no answer ends soon."""
    return [smollm2.tokens(skip)[:length] for skip, length in ((2, 41), (4, 23), (7, 57))]


@pytest.fixture(scope="module")
def ends(directory: Path) -> set[int]:
    return set(TextTokenizer.from_directory(directory).eos_ids)


def test_each_prompt_alone(directory: Path, loop: GenaiLoop, prompts: list[list[int]], ends: set[int]) -> None:
    for prompt in prompts:
        (expected,) = own_tokens(directory, [prompt], TOKENS, ends)
        assert loop.generate([prompt], TOKENS) == [expected]
        assert len(expected) == TOKENS, "an end token made the comparison short"


def test_logits_that_an_evaluation_asks_for(directory: Path, prompts: list[list[int]], tmp_path: Path) -> None:
    """The benchmark's worker gives them as GenAI computes them; llmc's session on the same graph says the same."""
    text, first = prompts[0], 30
    target = GenaiTarget("cpu")
    target.open(str(directory), THREADS)
    target.logits(text, first, str(tmp_path / "logits"))
    target.close()
    session = open_session(directory, threads=THREADS)
    try:
        parts = [rows.logits.copy() for rows in session_source(session)(np.array([text]), first)]
    finally:
        session.close()
    own = np.concatenate(parts)
    found = np.fromfile(tmp_path / "logits", np.float32).reshape(own.shape)
    assert len(own) == len(text) - 1 - first
    np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-3)


def test_a_batch_of_unequal_prompts(
    directory: Path, loop: GenaiLoop, prompts: list[list[int]], ends: set[int]
) -> None:
    expected = own_tokens(directory, prompts, TOKENS, ends)
    assert loop.generate(prompts, TOKENS) == expected
    assert [len(row) for row in expected] == [TOKENS] * 3


@pytest.mark.parametrize("way", ["appended", "chunk"])
def test_a_prompt_in_chunks(
    directory: Path, loop: GenaiLoop, prompts: list[list[int]], ends: set[int], way: str
) -> None:
    """By several ``append_tokens``, and by GenAI's own ``chunk_size``; 57 tokens leave a last chunk of 9."""
    (expected,) = own_tokens(directory, [prompts[2]], TOKENS, ends, CHUNK)
    assert loop.generate([prompts[2]], TOKENS, **{way: CHUNK}) == [expected]


def test_the_engine_with_its_kernels(
    smollm2: Built, prompts: list[list[int]], ends: set[int], tmp_path: Path
) -> None:
    """GenAI loads a library of operators from the model's directory; no artifact carries one."""
    engine = smollm2.engine(precision="int4")
    shutil.copytree(engine, tmp_path / "engine")
    try:
        library = kernel_library(tmp_path / "engine")
    except KernelsUnavailable as reason:
        pytest.skip(str(reason))
    options = {"custom_ops_library": library.name}
    loop = GenaiLoop(tmp_path / "engine", filename="engine.onnx", session_options=options)
    expected = own_tokens(engine, prompts, TOKENS, ends)
    assert loop.generate(prompts, TOKENS) == expected
    assert [len(row) for row in expected] == [TOKENS] * 3


def test_its_tokenizer_reads_our_files(directory: Path, loop: GenaiLoop) -> None:
    """Runs of line breaks before other text are left out: GenAI splits them otherwise than tokenizers does."""
    tokenizer = TextTokenizer.from_directory(directory)
    for text in (
        "In 1969, 12 people   walked.",
        "<|im_start|>user\nna\u00efve \u2014 caf\u00e9<|im_end|>\n",
        "\tdef f():",
    ):
        assert loop.encode(text) == tokenizer.encode(text)


# --- other architectures --------------------------------------------------------------------------------------------

ARCHITECTURES = [
    pytest.param("llama", {}, {}, id="llama"),
    pytest.param("llama", {}, {"cache": "grow", "logits": "all"}, id="a cache that grows, all logits"),
    pytest.param("mistral", {"sliding_window": 8}, {}, id="windows"),
    pytest.param("phi", {}, {}, id="positions as an input"),
    pytest.param("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, {}, id="experts"),
    pytest.param("diffllama", {}, {}, id="attention that is not lowered"),
]


@pytest.mark.parametrize(("model_type", "config", "options"), ARCHITECTURES)
def test_tiny_models(
    shared: Shared, tmp_path: Path, model_type: str, config: dict[str, Any], options: dict[str, Any]
) -> None:
    directory = tmp_path / "target"
    optimize(shared_portable(shared, model_type, **config), directory, OptimizeOptions(**options))
    loop, random = GenaiLoop(directory), np.random.default_rng(0)
    prompts = [random.integers(3, SIZES["vocab_size"], length).tolist() for length in (33, 5, 20)]
    for rows, chunk in ((prompts, None), (prompts[:1], None), (prompts[:1], 7)):
        expected = own_tokens(directory, rows, 24, {2}, chunk)
        assert loop.generate(rows, 24, appended=chunk) == expected
        assert len({token for row in expected for token in row}) >= 8, "a model that repeats itself proves little"


def test_one_option_opens_a_compiled_engine(shared: Shared, tmp_path: Path) -> None:
    """The engine of a float model: GenAI opens the graph beside the one that this ONNX Runtime optimized."""
    options = CompileOptions(ExportOptions(verify="off"), OptimizeOptions())
    compile_model(str(shared_model(shared)), tmp_path / "engine", options)
    expected = own_tokens(tmp_path / "engine", [[5, 9, 77]], 24, {2})
    assert GenaiLoop(tmp_path / "engine").generate([[5, 9, 77]], 24) == expected


# --- any artifact ---------------------------------------------------------------------------------------------------

TEXTS = ("The tides of the sea come and go because", "def fibonacci(n):\n", "Once upon a time there was a king who")


def compare(directory: Path) -> bool:
    """Print, for each prompt alone and for all in a batch, how many tokens are the same."""
    tokenizer, loop = TextTokenizer.from_directory(directory), GenaiLoop(directory)
    prompts, ends, good = [tokenizer.encode(text) for text in TEXTS], set(tokenizer.eos_ids), True
    for rows in (*([prompt] for prompt in prompts), prompts):
        pairs = list(zip(own_tokens(directory, rows, TOKENS, ends), loop.generate(rows, TOKENS), strict=True))
        good &= all(own == other for own, other in pairs)
        for own, other in pairs:
            equal = next((at for at, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), None)
            print(f"{directory}: {len(own)} tokens, {'the same' if own == other else f'other ones from {equal} on'}")
    return good


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders or not all((folder / GENAI_CONFIG).is_file() for folder in folders):
        sys.exit(f"give directories with {GENAI_CONFIG}, as llmc optimize makes them")
    same = [compare(folder) for folder in folders]
    sys.exit(not all(same))
