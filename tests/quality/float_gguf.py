"""A Llama checkpoint as a GGUF file in its own floats: ``python -m tests.quality.float_gguf MODEL OUTPUT``.

In: a Hugging Face directory of a Llama model, with or without a tokenizer, such as
``llmc.runtimes.bench.tools.synthetic`` writes. Out: a GGUF file that ``llama-quantize`` takes, to measure llama.cpp's
formats at a geometry of which there are random weights alone. llama.cpp's own converter refuses a model without a
tokenizer; here the file has none ("no_vocab"), only the size of its vocabulary.

llama.cpp turns neighbouring numbers of a head as a pair where transformers turns numbers half a head apart, so rows
of query and key move: row ``2 i + p`` of a head in the file is row ``i + p * head_dim / 2`` of the checkpoint's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import LlmcError, UnsupportedModelError
from llmc.compiler.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llmc.compiler.checkpoint.gguf_header import import_gguf

Array = npt.NDArray[Any]


def write(checkpoint: Checkpoint, output: Path) -> None:
    """Write the file ``output``, a tensor at a time.

    Raises:
        UnsupportedModelError: no Llama model, one with a scaled rotation, or with tensors that llama.cpp does not
            know by name.
        LlmcError: the checkpoint cannot be read.
    """
    gguf = import_gguf()
    names = _names(gguf, checkpoint)
    partial = output.with_name(f".{output.name}.partial")
    writer = gguf.GGUFWriter(partial, "llama")
    try:
        types = {name: _stored(gguf, checkpoint.weights.read(name, 0, 1)) for name in names}
        _add_metadata(writer, checkpoint)
        kinds = {raw.name for _, raw in types.values()} - {"F32"}
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kinds.pop()}" if kinds else "ALL_F32"])
        for name, (dtype, raw) in types.items():
            shape = checkpoint.weights.tensors()[name].shape
            writer.add_tensor_info(names[name], shape, dtype, int(np.prod(shape)) * dtype.itemsize, raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, (dtype, _) in types.items():
            rows = _permuted(name, checkpoint.weights.read(name), checkpoint)
            writer.write_tensor_data(rows.astype(dtype, copy=False).view(np.uint8))
        writer.close()
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _names(gguf: Any, checkpoint: Checkpoint) -> dict[str, str]:
    """The checkpoint's name of each tensor, and the file's."""
    config = checkpoint.config
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type != "llama" or rope.get("rope_type", "default") != "default":
        raise UnsupportedModelError(f"{checkpoint.name} is no Llama model with plain rotary embeddings")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    names = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in checkpoint.weights.tensors()}
    if unknown := [name for name, known in names.items() if known is None]:
        raise UnsupportedModelError(f"llama.cpp has no tensor for {unknown[0]} of {checkpoint.name}")
    return names


def _add_metadata(writer: Any, checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")


def _stored(gguf: Any, sample: Array) -> tuple[np.dtype[Any], Any]:
    """The type in which a tensor is stored: vectors in float32, as llama.cpp wants them, matrices as they are."""
    if sample.dtype == ml_dtypes.bfloat16 and sample.ndim > 1:
        return sample.dtype, gguf.GGMLQuantizationType.BF16
    if sample.dtype == np.float16 and sample.ndim > 1:
        return sample.dtype, gguf.GGMLQuantizationType.F16
    return np.dtype(np.float32), gguf.GGMLQuantizationType.F32


def _permuted(name: str, rows: Array, checkpoint: Checkpoint) -> Array:
    """Rows of query and key in the order of llama.cpp's rotation; others as they are."""
    config = checkpoint.config
    heads = {".q_proj.": config.num_attention_heads, ".k_proj.": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:
            halves = rows.reshape(count, 2, len(rows) // count // 2, *rows.shape[1:])
            return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
    return np.ascontiguousarray(rows)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.quality.float_gguf", description=__doc__)
    parser.add_argument("model", help="Hugging Face directory of a Llama model")
    parser.add_argument("output", type=Path, help="GGUF file to make")
    options = parser.parse_args()
    try:
        write(open_checkpoint(options.model, allow_download=False), options.output)
    except LlmcError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
