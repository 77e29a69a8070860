"""Quantized checkpoints as engines: the numbers that a target holds are kept to the bit, and tokens are the model's.

The oracle is transformers' eager float32 with the weights that the checkpoint's numbers stand for, which the test
draws and packs itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.driver import driver
from llmc.compiler.driver.driver import compile_model
from llmc.runtimes.engines import open_session

from ..compiler.checkpoint.quantized.packing import Array, awq, draw, expand, gptq, under, write
from ..generation import generate
from .tiny import save_model

BITS, GROUP, PROMPTS, LENGTH = 4, 32, ([3, 17, 80], [150, 9, 9, 41, 66], [120]), 12
SIZES = {"hidden_size": 128, "intermediate_size": 160, "max_position_embeddings": 64}
Pack = Callable[[Array, Array, Array], dict[str, Array]]


def in_order(levels: Array, zeros: Array, scales: Array) -> dict[str, Array]:
    return gptq(levels, zeros, scales, BITS)


def by_activation(levels: Array, zeros: Array, scales: Array) -> dict[str, Array]:
    return gptq(levels, zeros, scales, BITS, activation_index(levels.shape[1]))


def activation_index(features: int) -> Array:
    index: Array = np.random.default_rng(7).permutation(np.arange(features) // GROUP)
    return index


STATED: Mapping[str, Any] = {"bits": BITS, "group_size": GROUP}
FORMATS: Mapping[str, tuple[Pack, dict[str, Any]]] = {
    "gptq": (in_order, {**STATED, "quant_method": "gptq", "desc_act": False, "lm_head": True}),
    "gptq by activation": (by_activation, {**STATED, "quant_method": "gptq", "desc_act": True, "lm_head": True}),
    "awq": (awq, {**STATED, "quant_method": "awq", "version": "gemm", "zero_point": True}),
}


def quantize(source: Path, directory: Path, name: str) -> tuple[Path, dict[str, Array]]:
    """A checkpoint in a format, and the float weights of all its parameters."""
    from safetensors.numpy import load_file

    pack, stated = FORMATS[name]
    floats, stored = {}, {}
    for number, (parameter, values) in enumerate(load_file(source / "model.safetensors").items()):
        if values.ndim == 1:
            floats[parameter] = stored[parameter] = values
        elif "embed" in parameter:
            # A table on a grid of 8 bits, which is stored as it is: nothing but the format is then on trial.
            floats[parameter] = stored[parameter] = (np.rint(values * 200).clip(-127, 127) / 128).astype(np.float32)
        else:
            numbers = (levels, zeros, scales) = draw(*values.shape, values.shape[1] // GROUP, BITS, number)
            scales *= np.float16(0.5)
            index = activation_index(values.shape[1]) if pack is by_activation else None
            floats[parameter] = expand(levels, zeros, scales, index)
            stored |= under(parameter.removesuffix(".weight"), pack(*numbers))
    directory.mkdir()
    (directory / "config.json").write_text((source / "config.json").read_text())
    return write(directory, stored, quantization_config=stated), floats


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("plain") / "model", **SIZES)


def oracle(source: Path, floats: Mapping[str, Array]) -> list[list[int]]:
    """Greedy tokens of transformers' own model with these weights."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    model.load_state_dict({name: torch.from_numpy(values) for name, values in floats.items()})
    rows = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(LENGTH):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        rows.append(ids[len(prompt) :])
    return rows


def compiled(checkpoint: Path, output: Path, **options: Any) -> Path:
    compile_model(
        str(checkpoint),
        output,
        CompileOptions(export=ExportOptions(verify="off"), optimize=OptimizeOptions(**options)),
    )
    return output


def tokens(engine: Path) -> list[list[int]]:
    session = open_session(engine, threads=1)
    try:
        return [list(generate(session, [list(row)], max_tokens=LENGTH, eos_ids=()).tokens[0]) for row in PROMPTS]
    finally:
        session.close()


def rows_in(graph: Path) -> set[bytes]:
    """The rows for which the products of four bits of a graph stand, as float32."""
    model = onnx.load(graph)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = set()
    for node in model.graph.node:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type != "MatMulNBits" or attributes.get("bits") != BITS or node.input[1] not in arrays:
            continue
        packed, scales, points = (arrays[name] for name in node.input[1:4])
        shape = (attributes["N"], attributes["K"] // attributes["block_size"])
        levels = np.stack([packed & 15, packed >> 4], -1).reshape(*shape, -1)
        zeros = np.stack([points & 15, points >> 4], -1).reshape(shape[0], -1)[:, : shape[1]]
        floats = (levels.astype(np.float32) - zeros[..., None]) * scales.reshape(*shape, 1)
        found |= {row.tobytes() for row in floats.reshape(shape[0], -1).astype(np.float32)}
    return found


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_kept_numbers_are_the_checkpoints_and_so_are_the_tokens(name: str, source: Path, tmp_path: Path) -> None:
    checkpoint, floats = quantize(source, tmp_path / "quantized", name)
    engine = compiled(checkpoint, tmp_path / "engine", precision="int4", logits="last", keep_quantization=True)
    kept = rows_in(engine / "model.onnx")
    for parameter, values in floats.items():
        if values.ndim > 1 and "embed" not in parameter:
            assert {row.tobytes() for row in values} <= kept, parameter
    assert tokens(engine) == oracle(source, floats)
    assert "quantization_config" not in (engine / "config.json").read_text()


def test_groups_in_the_order_of_activations_are_read_in_floats(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no blocks of consecutive features, which an operator could hold; in floats nothing is lost.

    That they are not kept is said before anything that takes long.
    """
    checkpoint, floats = quantize(source, tmp_path / "quantized", "gptq by activation")
    assert tokens(compiled(checkpoint, tmp_path / "floats")) == oracle(source, floats)
    asked = r"do not hold the numbers of model\.layers\.\*\..* \(GPTQ int4, \d+ groups in the order of activations\)"
    for name in ("write_golden", "chosen_numbers"):
        monkeypatch.setattr(driver, name, lambda *_, **__: pytest.fail("this takes long"))
    with pytest.raises(UnsupportedModelError, match=asked):
        compiled(checkpoint, tmp_path / "four", precision="int4", keep_quantization=True)
    assert not (tmp_path / "four").exists()
