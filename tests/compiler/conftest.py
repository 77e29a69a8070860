"""Records that the tests of the compiler share."""

from __future__ import annotations

import pytest

from llmc.compiler.geometry import ModelGeometry
from llmc.compiler.manifest import EngineRecord, FileRecord, Manifest, PassRecord, Source


@pytest.fixture
def geometry() -> ModelGeometry:
    return ModelGeometry(
        model_type="llama",
        num_layers=3,
        hidden_size=576,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        value_head_dim=64,
        vocab_size=49152,
        intermediate_size=1536,
        max_position_embeddings=8192,
        sliding_windows=(None, 512, None),
        tie_word_embeddings=True,
    )


@pytest.fixture
def manifest(geometry: ModelGeometry) -> Manifest:
    return Manifest(
        kind="engine",
        source=Source(
            name="smollm2-135m",
            format="gguf",
            files={"model.gguf": FileRecord(bytes=3, sha256="a" * 64)},
            licence="Apache-2.0",
        ),
        model=geometry,
        target="cpu",
        precision="int4",
        cache="shared",
        logits="last",
        max_context=128,
        weight_bytes=1000,
        engine=EngineRecord(runtime="onnxruntime-cpu", threads=2, profiles=((1, 512),), details={"a": [1, None]}),
        passes=(
            PassRecord(
                name="PackQKV",
                fields={"block": 32, "names": ["q", "k"]},
                modified=True,
                counts={"packed": 3},
                expected={"packed": 3},
                nodes_before=30,
                nodes_after=24,
                bytes_before=100,
                bytes_after=100,
            ),
        ),
        tolerances={"logits_max_abs": 1e-3},
        measured={"logits_max_abs": 2.5e-4},
        files={},
        tools={"llmc": "0.1.0"},
    )
