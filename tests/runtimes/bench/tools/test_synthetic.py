"""Checkpoints of a geometry: sizes of the models they stand for, shards, spreads, and what a failure leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.runtimes.bench.tools import synthetic
from llmc.runtimes.bench.tools.synthetic import GEOMETRIES, LlamaGeometry, write_checkpoint

TINY = LlamaGeometry(layers=1, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocab=50)
LAYER = "model.layers.0"


def read(path: Path) -> tuple[int, dict[str, npt.NDArray[Any]]]:
    """Bytes before the data, and the tensors of a shard as float32."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    assert header.pop("__metadata__") == {"format": "pt"}
    return begin, {
        name: np.frombuffer(data[begin:][slice(*entry["data_offsets"])], ml_dtypes.bfloat16)
        .reshape(entry["shape"])
        .astype(np.float32)
        for name, entry in header.items()
    }


@pytest.mark.parametrize(("name", "parameters"), [("llama-8b", 8_030_261_248), ("llama-1b", 1_235_814_400)])
def test_geometries_have_the_parameters_of_their_models(name: str, parameters: int) -> None:
    assert GEOMETRIES[name].checkpoint_bytes == 2 * parameters


def test_shapes_of_a_layer_and_of_what_is_around() -> None:
    assert TINY.shapes() == {
        "model.embed_tokens.weight": (50, 64),
        f"{LAYER}.input_layernorm.weight": (64,),
        f"{LAYER}.self_attn.q_proj.weight": (64, 64),
        f"{LAYER}.self_attn.k_proj.weight": (32, 64),
        f"{LAYER}.self_attn.v_proj.weight": (32, 64),
        f"{LAYER}.self_attn.o_proj.weight": (64, 64),
        f"{LAYER}.post_attention_layernorm.weight": (64,),
        f"{LAYER}.mlp.gate_proj.weight": (96, 64),
        f"{LAYER}.mlp.up_proj.weight": (96, 64),
        f"{LAYER}.mlp.down_proj.weight": (64, 96),
        "model.norm.weight": (64,),
        "lm_head.weight": (50, 64),
    }
    wide = LlamaGeometry(layers=1, hidden=64, heads=4, kv_heads=2, head_dim=32, intermediate=96, vocab=50, tied=True)
    assert wide.shapes()[f"{LAYER}.self_attn.q_proj.weight"] == (128, 64)
    assert wide.shapes()[f"{LAYER}.self_attn.o_proj.weight"] == (64, 128)
    assert "lm_head.weight" not in wide.shapes()
    assert wide.config()["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    "sizes", [{"layers": 0}, {"layers": 1, "heads": 3, "kv_heads": 2}, {"layers": 1, "vocab": 0}]
)
def test_sizes_that_are_no_geometry(sizes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="not a Llama geometry"):
        LlamaGeometry(**sizes)


@pytest.mark.parametrize(("limit", "shards"), [(40, ["ab", "c", "d"]), (39, ["a", "b", "c", "d"]), (200, ["abcd"])])
def test_shards_are_filled_to_their_limit(limit: int, shards: list[str]) -> None:
    """Tensors of 20 bytes, and one that is larger than two shards."""
    found = synthetic._shards({"a": (10,), "b": (2, 5), "c": (10,), "d": (50,)}, limit)
    assert ["".join(shapes) for shapes in found] == shards


def test_values_by_name_with_the_spread_of_their_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "PIECE_ELEMENTS", 1000)
    write_checkpoint(tmp_path, TINY)
    begin, tensors = read(tmp_path / "model-00001-of-00001.safetensors")
    assert begin % 8 == 0
    assert {name: tensor.shape for name, tensor in tensors.items()} == TINY.shapes()
    for name, spread in (("model.embed_tokens", 0.02), (f"{LAYER}.mlp.down_proj", 96**-0.5), ("lm_head", 64**-0.5)):
        assert tensors[f"{name}.weight"].std() == pytest.approx(spread, rel=0.05)
    assert (tensors["model.norm.weight"] == 1).all()
    queries, output = (tensors[f"{LAYER}.self_attn.{name}_proj.weight"] for name in "qo")
    assert np.corrcoef(queries.ravel(), output.ravel())[0, 1] == pytest.approx(0, abs=0.1)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert (
        index["metadata"]["total_size"] == TINY.checkpoint_bytes == sum(2 * value.size for value in tensors.values())
    )


def test_a_sparse_checkpoint_has_the_size_and_no_values(tmp_path: Path) -> None:
    for name in ("dense", "sparse"):
        write_checkpoint(tmp_path / name, TINY, sparse=name == "sparse", shard_bytes=20_000)
    dense, sparse = (sorted((tmp_path / name).glob("*.safetensors")) for name in ("dense", "sparse"))
    assert len(dense) > 1
    assert [path.stat().st_size for path in sparse] == [path.stat().st_size for path in dense]
    tensors = {name: value for path in sparse for name, value in read(path)[1].items()}
    assert set(tensors) == set(TINY.shapes())
    assert not any(value.any() for value in tensors.values())


def test_a_checkpoint_that_was_not_finished_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_write_shard", full)
        with pytest.raises(ArtifactError, match=r"cannot write the checkpoint .*no space"):
            write_checkpoint(tmp_path, TINY)
    assert not (tmp_path / "config.json").exists()
    with pytest.raises(ArtifactError, match="not empty and not this checkpoint"):
        write_checkpoint(tmp_path, TINY)


def test_another_geometry_is_not_taken_for_this_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY, sparse=True)
    write_checkpoint(tmp_path, TINY)
    other = LlamaGeometry(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocab=50)
    with pytest.raises(ArtifactError, match="not this checkpoint"):
        write_checkpoint(tmp_path, other)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(synthetic.GEOMETRIES, "llama-1b", TINY)
    assert synthetic.main(["llama-1b", "-o", str(tmp_path / "a"), "--sparse", "--layers", "3"]) == 0
    assert json.loads((tmp_path / "a" / "config.json").read_text())["num_hidden_layers"] == 3
    assert synthetic.main(["llama-1b", "-o", str(tmp_path / "a")]) == ArtifactError.exit_code
    assert synthetic.main(["llama-1b", "-o", str(tmp_path / "b"), "--layers", "0"]) == UsageError.exit_code
