"""An engine to look at, without weights."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from llmc.compiler.artifact.artifact import write_manifest
from llmc.compiler.artifact.manifest import Manifest

ENGINE = """<ir_version: 10, opset_import: ["" : 23, "test" : 1]>
tiny (int64[batch, sequence] input_ids, float16[batch, 2, capacity, 8] "past_key_values.0.key")
 => (float16[batch, 1, 64] logits, float16[batch, 2, capacity, 8] "present.0.key")
{ logits, "present.0.key" = test.Decoder(input_ids, "past_key_values.0.key") }"""


@pytest.fixture
def engine(tmp_path: Path, manifest: Manifest) -> Path:
    """A CPU engine with a shared cache and a context of 128."""
    ir.save(ir.from_onnx_text(ENGINE), tmp_path / "model.onnx")
    write_manifest(tmp_path, manifest)
    return tmp_path
