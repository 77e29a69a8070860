"""Size, hash and bits of what a benchmark opened: an artifact, a GGUF file, another directory, nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.artifact import write_manifest
from llmc.compiler.artifact.manifest import EngineRecord, FileRecord, Manifest, Source
from llmc.compiler.base.contract import Contract
from llmc.compiler.base.geometry import ModelGeometry
from llmc.runtimes.bench.artifact_facts import ArtifactFacts, artifact_facts

from .workers.gguf_files import Q4_0, gguf

GRAPH = """<ir_version: 10, opset_import: ["" : 23]>
tiny (float[1, 4] x) => (float[1, 8] y) { y = MatMul(x, w) }"""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A product of 4 by 8 float16 weights, a manifest that records two files, and 64 bytes of weights."""
    model = ir.from_onnx_text(GRAPH)
    weight = ir.tensor(np.zeros((4, 8), np.float16), name="w")
    value = ir.Value(name="w", const_value=weight, shape=ir.Shape((4, 8)), type=ir.TensorType(ir.DataType.FLOAT16))
    model.graph.node(0).replace_input_with(1, value)
    model.graph.initializers["w"] = value
    ir.save(model, tmp_path / "model.onnx")
    (tmp_path / "model.onnx.data").write_bytes(b"d" * 64)
    files = {
        name: FileRecord((tmp_path / name).stat().st_size, sha256((tmp_path / name).read_bytes()))
        for name in ("model.onnx", "model.onnx.data")
    }
    write_manifest(tmp_path, _manifest(files))
    return tmp_path


def _manifest(files: dict[str, FileRecord]) -> Manifest:
    geometry = ModelGeometry(
        model_type="llama",
        num_layers=1,
        hidden_size=4,
        num_heads=1,
        num_kv_heads=1,
        head_dim=4,
        value_head_dim=4,
        vocab_size=8,
        intermediate_size=8,
        max_position_embeddings=16,
        sliding_windows=(None,),
        tie_word_embeddings=False,
    )
    return Manifest(
        kind="engine",
        source=Source(name="tiny", format="safetensors", files={}, licence=None),
        model=geometry,
        target="cpu",
        precision="fp16",
        contract=Contract(),
        max_context=16,
        weight_bytes=64,
        engine=EngineRecord("onnxruntime-cpu", None, {}),
        passes=(),
        tolerances={},
        measured={},
        files=files,
        tools={},
    )


def test_an_artifact(artifact: Path) -> None:
    facts = artifact_facts(artifact)
    graph, data = (sha256((artifact / name).read_bytes()) for name in ("model.onnx", "model.onnx.data"))
    listed = f"{graph}  model.onnx\n{data}  model.onnx.data\n"
    assert facts == ArtifactFacts(64, sha256(listed.encode()), 16.0, 32)


def test_an_artifact_without_a_data_file_counts_all(artifact: Path) -> None:
    (artifact / "model.onnx.data").unlink()
    size = (artifact / "model.onnx").stat().st_size
    record = FileRecord(size, sha256((artifact / "model.onnx").read_bytes()))
    write_manifest(artifact, _manifest({"model.onnx": record}))
    facts = artifact_facts(artifact)
    assert facts is not None
    assert facts.bytes == size


def test_an_artifact_whose_graph_cannot_be_read_has_no_bits(artifact: Path) -> None:
    (artifact / "model.onnx").write_bytes(b"x" * 9)
    record = FileRecord(9, sha256(b"x" * 9))
    write_manifest(artifact, _manifest({"model.onnx": record}))
    facts = artifact_facts(artifact)
    assert facts is not None
    assert (facts.bits_per_weight, facts.weights) == (None, None)


def test_a_gguf_file_without_its_vocabulary(tmp_path: Path) -> None:
    """64 weights in 36 bytes behind the head."""
    file = gguf(tmp_path / "m.gguf", [("c", Q4_0, (32, 2))])
    with file.open("ab") as more:
        more.write(b"w" * 36)
    assert artifact_facts(file) == ArtifactFacts(file.stat().st_size, sha256(file.read_bytes()), 4.5, 64)


def test_other_files_have_no_bits(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"abc")
    assert artifact_facts(tmp_path / "m.bin") == ArtifactFacts(3, sha256(b"abc"))
    (tmp_path / "m.gguf").write_bytes(b"abc")
    assert artifact_facts(tmp_path / "m.gguf") == ArtifactFacts(3, sha256(b"abc"))


def test_a_directory_is_hashed_by_name(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b").write_bytes(b"12")
    (tmp_path / "a").write_bytes(b"345")
    listed = f"{sha256(b'345')}  a\n{sha256(b'12')}  in/b\n"
    assert artifact_facts(tmp_path) == ArtifactFacts(5, sha256(listed.encode()))
    (tmp_path / "a").rename(tmp_path / "c")
    assert artifact_facts(tmp_path) != ArtifactFacts(5, sha256(listed.encode()))


def test_nothing_there(tmp_path: Path) -> None:
    assert artifact_facts(tmp_path / "none") is None
    (tmp_path / "llmc.json").write_text("{}")
    assert artifact_facts(tmp_path) is None
