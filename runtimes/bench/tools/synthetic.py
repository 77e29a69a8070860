"""A checkpoint of a chosen geometry with random weights: ``python -m llmc.runtimes.bench.tools.synthetic``.

In: a geometry. Out: a directory as Hugging Face has it: ``config.json``, ``model-0000i-of-0000n.safetensors`` and
their index; no tokenizer. Weights are bfloat16, drawn and written a few megabytes at a time, so that writing an 8B
model takes no more memory than writing a small one.

    python -m llmc.runtimes.bench.tools.synthetic llama-8b -o DIR --sparse
    llmc compile DIR -o OUT --target cuda --precision int4 --weights none --verify off

makes a graph of 8B geometry in seconds, whose weights ``llmc.runtimes.bench.tools.random_weights`` draws where it is
measured.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from rich.console import Console

from llmc.compiler.base.errors import ArtifactError, LlmcError, UsageError

BF16_BYTES = 2
PIECE_ELEMENTS = 4 << 20
SHARD_BYTES = 2 << 30
CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class LlamaGeometry:
    """Sizes of a Llama model; the defaults are those of Llama 3.1 8B, without its number of layers."""

    layers: int
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    intermediate: int = 14336
    vocab: int = 128256
    tied: bool = False

    def __post_init__(self) -> None:
        sizes = (self.layers, self.hidden, self.heads, self.kv_heads, self.head_dim, self.intermediate, self.vocab)
        if min(sizes) < 1 or self.heads % self.kv_heads:
            raise UsageError(f"not a Llama geometry: {self}")

    def config(self) -> dict[str, Any]:
        """``config.json`` as transformers 5 writes it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-05,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "max_position_embeddings": 8192,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": self.tied,
            "bos_token_id": min(128000, self.vocab - 1),
            "eos_token_id": min(128001, self.vocab - 1),
        }

    def shapes(self) -> Shapes:
        """Name -> shape of every tensor of the state dict, in file order."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: Shapes = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for index in range(self.layers):
            layer = f"model.layers.{index}"
            shapes |= {
                f"{layer}.input_layernorm.weight": (self.hidden,),
                f"{layer}.self_attn.q_proj.weight": (queries, self.hidden),
                f"{layer}.self_attn.k_proj.weight": (keys, self.hidden),
                f"{layer}.self_attn.v_proj.weight": (keys, self.hidden),
                f"{layer}.self_attn.o_proj.weight": (self.hidden, queries),
                f"{layer}.post_attention_layernorm.weight": (self.hidden,),
                f"{layer}.mlp.gate_proj.weight": (self.intermediate, self.hidden),
                f"{layer}.mlp.up_proj.weight": (self.intermediate, self.hidden),
                f"{layer}.mlp.down_proj.weight": (self.hidden, self.intermediate),
            }
        shapes["model.norm.weight"] = (self.hidden,)
        return shapes if self.tied else shapes | {"lm_head.weight": (self.vocab, self.hidden)}

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(math.prod(shape) for shape in self.shapes().values()) * BF16_BYTES


GEOMETRIES = {
    "llama-8b": LlamaGeometry(layers=32),
    "llama-1b": LlamaGeometry(layers=16, hidden=2048, head_dim=64, intermediate=8192, tied=True),
}
"""Names for the command line: the geometries of Llama 3.1 8B and Llama 3.2 1B."""


def write_checkpoint(
    directory: Path, geometry: LlamaGeometry, *, shard_bytes: int = SHARD_BYTES, sparse: bool = False
) -> None:
    """Write a checkpoint, or leave the one that is there when it has this geometry and is complete.

    Matrices are normal with standard deviation ``1/sqrt(input width)``, embeddings with 0.02, norms one: activations
    keep the size they have in a trained model, so quantization sees no degenerate blocks. A tensor's values depend on
    its name alone. A ``sparse`` checkpoint has the sizes and no values: its tensors read as zeros and take no room on
    the disk, for compiling a graph whose weights are left out.

    Raises:
        ArtifactError: the directory holds something else, or writing failed.
    """
    config = directory / CONFIG_NAME
    wanted = json.dumps(geometry.config(), indent=2) + "\n"
    if config.is_file() and config.read_text() == wanted:
        return
    if directory.exists() and any(directory.iterdir()):
        raise ArtifactError(f"{directory} is not empty and not this checkpoint: remove it or name another directory")
    directory.mkdir(parents=True, exist_ok=True)
    shards = _shards(geometry.shapes(), shard_bytes)
    weight_map: dict[str, str] = {}
    try:
        for number, shapes in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            weight_map |= dict.fromkeys(shapes, name)
            with (directory / name).open("wb") as file:
                _write_shard(file, shapes, sparse=sparse)
        index = {"metadata": {"total_size": geometry.checkpoint_bytes}, "weight_map": weight_map}
        (directory / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        config.write_text(wanted)  # last: its presence says that the rest is complete
    except OSError as error:
        raise ArtifactError(f"cannot write the checkpoint {directory}: {error}") from error


def _shards(shapes: Shapes, limit: int) -> list[Shapes]:
    shards: list[Shapes] = [{}]
    used = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * BF16_BYTES
        if shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += size
    return shards


def _write_shard(file: BinaryIO, shapes: Shapes, *, sparse: bool) -> None:
    """The safetensors format: length of the header (uint64, little-endian), header (JSON), data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * BF16_BYTES
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    if sparse:
        file.truncate(file.tell() + offset)
        return
    for name, shape in shapes.items():
        for piece in tensor_values(name, shape):
            file.write(piece)


def tensor_values(name: str, shape: tuple[int, ...]) -> Iterator[bytes]:
    """The bytes of a tensor in bfloat16, a piece at a time."""
    count = math.prod(shape)
    if len(shape) == 1:
        yield np.ones(count, dtype=ml_dtypes.bfloat16).tobytes()
        return
    scale = np.float32(0.02 if "embed" in name else shape[1] ** -0.5)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    for start in range(0, count, PIECE_ELEMENTS):
        values = generator.standard_normal(min(PIECE_ELEMENTS, count - start), dtype=np.float32)
        values *= scale
        yield values.astype(ml_dtypes.bfloat16).tobytes()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="llmc.runtimes.bench.tools.synthetic", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("geometry", choices=sorted(GEOMETRIES))
    parser.add_argument("-o", "--output", type=Path, required=True, help="directory to make")
    parser.add_argument("--layers", type=int, help="another number of layers")
    parser.add_argument("--sparse", action="store_true", help="sizes without values: zeros that take no room")
    options = parser.parse_args(arguments)
    try:
        geometry = GEOMETRIES[options.geometry]
        if options.layers is not None:
            geometry = replace(geometry, layers=options.layers)
        write_checkpoint(options.output, geometry, sparse=options.sparse)
    except LlmcError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
