"""float32: the portable graph on plain ONNX Runtime, and every CPU target, say what transformers says.

One bound for every logit of every position: 1e-3 against eager attention in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.base.options import ExportOptions
from llmc.compiler.driver.driver import export
from llmc.runtimes.engines import open_session
from llmc.runtimes.session.engine import Session

from ..generation import generate
from .conftest import BOTH, DECODED, Built
from .oracle import THREADS, Agreement, PortableGraph, lead_graph, lead_session

BOUND = 1e-3
WAYS = [
    pytest.param("single", "left", 0, 64, id="100 tokens"),
    pytest.param("single", "left", 7, 8, id="100 tokens in chunks"),
    pytest.param("ragged", "left", 0, 32, id="left-padded"),
    pytest.param("ragged", "right", 0, 8, id="right-padded"),
    pytest.param("ragged", "left", 7, 8, id="left-padded in chunks"),
    pytest.param("ragged", "right", 7, 32, id="right-padded in chunks"),
]
TARGETS = ["portable", "shared last", "shared all", "grow last", "grow all", "engine"]
SESSION_WAYS = [
    pytest.param("single", 0, 64, id="100 tokens"),
    pytest.param("single", 7, 8, id="100 tokens in chunks"),
    pytest.param("ragged", 0, 32, id="ragged"),
    pytest.param("ragged", 7, 32, id="ragged in chunks"),
]
"""Sessions take right-padded rows alone."""
LONG = [
    pytest.param("long", "left", 0, 8, id="620 tokens"),
    pytest.param("long", "left", 7, 2, id="620 tokens in chunks"),
    pytest.param("long ragged", "left", 0, 4, id="left-padded"),
    pytest.param("long ragged", "right", 97, 8, id="right-padded in chunks"),
]
SESSION_LONG = [
    pytest.param("long", 0, 8, id="620 tokens"),
    pytest.param("long", 7, 2, id="620 tokens in chunks"),
    pytest.param("long ragged", 0, 4, id="ragged"),
    pytest.param("long ragged", 97, 8, id="ragged in chunks"),
]


@pytest.fixture(scope="module")
def graphs() -> Iterator[dict[Path, PortableGraph]]:
    """Opened once each."""
    opened: dict[Path, PortableGraph] = {}
    yield opened
    opened.clear()


@pytest.fixture(scope="module")
def sessions() -> Iterator[dict[Path, Session]]:
    """The session that is open: one at a time, because each holds the weights."""
    opened: dict[Path, Session] = {}
    yield opened
    for session in opened.values():
        session.close()


def open_graph(opened: dict[Path, PortableGraph], directory: Path) -> PortableGraph:
    if directory not in opened:
        opened.clear()
        opened[directory] = PortableGraph(directory)
    return opened[directory]


def open_one(opened: dict[Path, Session], built: Built, target: str) -> Session:
    words = target.split()
    path = {"portable": lambda: built.portable, "engine": built.engine}.get(
        target, lambda: built.target(cache=words[0], logits=words[1])
    )()
    if path not in opened:
        for session in opened.values():
            session.close()
        opened.clear()
        opened[path] = open_session(path, threads=THREADS)
    return opened[path]


def agrees(result: Agreement) -> bool:
    return result.error < BOUND and result.tokens


@pytest.mark.parametrize("built", BOTH, indirect=True)
@pytest.mark.parametrize(("kind", "side", "chunk", "steps"), WAYS)
def test_the_portable_graph_by_itself(
    graphs: dict[Path, PortableGraph], built: Built, kind: str, side: str, chunk: int, steps: int
) -> None:
    graph = open_graph(graphs, built.portable)
    assert graph.inputs[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert agrees(lead_graph(graph, built.rows(kind), side=side, chunk=chunk, steps=steps))


@pytest.mark.parametrize("built", BOTH, indirect=True)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kind", "chunk", "steps"), SESSION_WAYS)
def test_sessions(
    sessions: dict[Path, Session], built: Built, target: str, kind: str, chunk: int, steps: int
) -> None:
    session = open_one(sessions, built, target)
    assert agrees(lead_session(session, built.rows(kind), chunk=chunk, steps=steps))


@pytest.mark.parametrize("built", BOTH, indirect=True)
def test_the_same_greedy_tokens_through_the_decode_loop(sessions: dict[Path, Session], built: Built) -> None:
    session = open_one(sessions, built, "engine")
    for kind in ("single", "ragged"):
        rows, steps = built.rows(kind), DECODED[kind]
        made = generate(session, [row.prompt for row in rows], max_tokens=steps, prefill_chunk=32)
        assert [list(row) for row in made.tokens] == [row.continuation for row in rows]


@pytest.mark.gemma
@pytest.mark.parametrize(("kind", "side", "chunk", "steps"), LONG)
def test_the_portable_graph_past_its_sliding_window(
    graphs: dict[Path, PortableGraph], gemma3: Built, kind: str, side: str, chunk: int, steps: int
) -> None:
    graph = open_graph(graphs, gemma3.portable)
    assert agrees(lead_graph(graph, gemma3.rows(kind), side=side, chunk=chunk, steps=steps))


@pytest.mark.gemma
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kind", "chunk", "steps"), SESSION_LONG)
def test_sessions_past_a_sliding_window(
    sessions: dict[Path, Session], gemma3: Built, target: str, kind: str, chunk: int, steps: int
) -> None:
    session = open_one(sessions, gemma3, target)
    assert agrees(lead_session(session, gemma3.rows(kind), chunk=chunk, steps=steps))


def test_a_hugging_face_directory_gives_the_same_graph(smollm2: Built, tmp_path: Path) -> None:
    """Saved by transformers from what it read of the GGUF file."""
    from transformers import AutoTokenizer

    config = copy.deepcopy(smollm2.eager.config)
    # transformers refuses to save what says that it is quantized, though its weights are floats by now.
    del config.quantization_config
    fresh = type(smollm2.eager)(config)
    fresh.load_state_dict(smollm2.eager.state_dict())
    fresh.save_pretrained(tmp_path / "hf")
    AutoTokenizer.from_pretrained(str(smollm2.portable)).save_pretrained(tmp_path / "hf")
    export(str(tmp_path / "hf"), tmp_path / "portable", ExportOptions(verify="off"))
    ours, theirs = PortableGraph(smollm2.portable), PortableGraph(tmp_path / "portable")
    ids = np.array([smollm2.rows("single")[0].prompt], np.int64)
    assert np.array_equal(ours.forward(ids, np.ones_like(ids)), theirs.forward(ids, np.ones_like(ids)))
    assert (tmp_path / "portable" / "model.onnx").read_bytes() == (smollm2.portable / "model.onnx").read_bytes()


@pytest.mark.parametrize("built", BOTH, indirect=True)
def test_a_built_in_name_is_its_file(built: Built, model_packages: tuple[Path, ...]) -> None:
    from llmc.compiler.base.errors import MissingDependencyError
    from llmc.compiler.checkpoint.checkpoint import open_checkpoint

    try:
        named = open_checkpoint(built.name, search_path=model_packages)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    with named.content_hashes() as of_name, open_checkpoint(str(built.source)).content_hashes() as of_file:
        assert list(of_name.result().values()) == list(of_file.result().values())
