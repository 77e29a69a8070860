"""Records that the tests of the compiler share."""

from __future__ import annotations

from typing import Any

import pytest

from llmc.compiler.artifact.manifest import EngineRecord, FileRecord, Manifest, PassRecord, Source
from llmc.compiler.base.contract import Contract
from llmc.compiler.base.geometry import ModelGeometry


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
        contract=Contract(rows="slot0", cache="shared", logits="last"),
        max_context=128,
        weight_bytes=1000,
        engine=EngineRecord(runtime="onnxruntime-cpu", threads=2, details={"a": [1, None]}),
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
        tolerances={"engine.onnx": {"logits_max_abs": 1e-3}},
        measured={"engine.onnx": {"logits_max_abs": 2.5e-4}},
        files={},
        tools={"llmc": "0.1.0"},
    )


@pytest.fixture
def doubled_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers then doubles one weight of each llama layer on loading, and halves it on saving."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import ConversionOps, WeightConverter

    class Scale(ConversionOps):  # type: ignore[misc]
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def convert(self, input_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
            return {name: t * self.factor for name, [t] in ((n, _as_list(t)) for n, t in input_dict.items())}

        @property
        def reverse_op(self) -> Scale:
            return Scale(1 / self.factor)

    def _as_list(tensors: Any) -> list[Any]:
        return tensors if isinstance(tensors, list) else [tensors]

    conversion_mapping.get_checkpoint_conversion_mapping("llama")
    converter = WeightConverter("mlp.down_proj.weight", "mlp.down_proj.weight", operations=[Scale(2.0)])
    monkeypatch.setitem(conversion_mapping._checkpoint_conversion_mapping_cache, "llama", [converter])
