"""``genai_config.json``: with it ONNX Runtime GenAI opens the directory of a target graph or of an engine.

In: a directory with ``model.onnx``, the checkpoint's configuration files and, where there is one, its tokenizer; the
manifest. Out: the text of the file, or the reason why GenAI cannot run the graph.

GenAI has one loop for all decoders (``"type": "decoder"``). What it feeds is what a fused graph takes: ``input_ids``,
an ``attention_mask`` as wide as the tokens so far, right-padded in the first chunk, ``position_ids`` where the graph
asks for them, and a cache of which only heads and widths may differ by layer. Graphs with attention that was not
lowered understand the same: a slot of their cache is a column of the mask. It looks at the graph's logits to see
whether they are those of the last token only. It opens ``model.onnx``, which needs nothing but ONNX Runtime.

States are refused: GenAI writes a layer's next state over the one that the graph reads.

Source: onnxruntime-genai 0.18, ``src/config.h``, ``src/models/{decoder_only,kv_cache,position_inputs,logits}.cpp``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.contract import ATTENTION_MASK, GRAPH, INPUT_IDS, LOGITS, PAST, POSITION_IDS, PRESENT
from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.base.json_record import JsonValue, read_object, to_text
from llmc.compiler.base.targets import get_target
from llmc.compiler.graph.read_model import read_model
from llmc.runtimes.generation.text import TextTokenizer

log = logging.getLogger(__name__)
GENAI_CONFIG = "genai_config.json"
INPUTS = (INPUT_IDS, ATTENTION_MASK, POSITION_IDS)
CACHE_TYPES = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
SEARCH = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")
"""Settings that mean the same in ``generation_config.json`` and in GenAI's ``search``."""


def write_genai_config(directory: Path, manifest: Manifest) -> str | None:
    """Write the file where GenAI can run the graph; else log why not.

    Args:
        directory: With ``model.onnx`` and the checkpoint's small files written.
        manifest: Of the target graph or engine.

    Returns:
        Why there is no file; None where it was written.

    Raises:
        ArtifactError: a configuration file is damaged.
    """
    graph = read_model(directory / GRAPH).graph
    if (reason := refusal(graph, manifest)) is not None:
        log.info("no %s: ONNX Runtime GenAI cannot run this graph, because %s", GENAI_CONFIG, reason)
    else:
        (directory / GENAI_CONFIG).write_text(to_text(genai_config(graph, directory, manifest)), encoding="utf-8")
    return reason


def refusal(graph: ir.Graph, manifest: Manifest) -> str | None:
    """Why GenAI's decoder loop cannot run this graph; None where it can."""
    if get_target(manifest.target).genai_providers is None:
        return f"it has no provider for the target {manifest.target}"
    inputs = {str(value.name): value for value in graph.inputs}
    if missing := [name for name in INPUTS[:2] if name not in inputs]:
        return f"it takes no {missing[0]}"
    layers = _layers(inputs)
    known = {*INPUTS, *(f"{PAST}{layer}.{part}" for layer in layers for part in ("key", "value"))}
    if other := next((name for name in inputs if name not in known), None):
        return f"{other} needs one buffer to read and one to write, which GenAI does not give it"
    return _cache_refusal(inputs, layers) or _logits_refusal(graph)


def _cache_refusal(inputs: Mapping[str, ir.Value], layers: Sequence[int]) -> str | None:
    if not layers:
        return "it has no cache of keys and values"
    types: set[ir.DataType | None] = set()
    for layer in layers:
        key, value = (inputs[f"{PAST}{layer}.{part}"] for part in ("key", "value"))
        if (widths := (_width(key), _width(value)))[0] != widths[1]:
            return f"layer {layer} keeps keys of width {widths[0]} and values of width {widths[1]}"
        types |= {key.dtype, value.dtype}
    if types - CACHE_TYPES or len(types) > 1:
        return f"its cache holds {' and '.join(sorted(map(str, types)))}, not one type of floats"
    return None


def _logits_refusal(graph: ir.Graph) -> str | None:
    shape = next((value.shape for value in graph.outputs if value.name == LOGITS), None)
    return None if shape is not None and len(shape) == 3 and isinstance(shape[2], int) else f"its logits are {shape}"


def genai_config(graph: ir.Graph, directory: Path, manifest: Manifest) -> dict[str, JsonValue]:
    """What the file holds; equal arguments give an equal value.

    Args:
        graph: One that :func:`refusal` has nothing against.
        directory: With ``config.json``, ``generation_config.json`` and the tokenizer, as far as there are such.
        manifest: Of the target graph or engine.

    Raises:
        ArtifactError: a configuration file is damaged.
    """
    names = {str(value.name) for value in graph.inputs}
    first = next(value for value in graph.inputs if str(value.name).endswith(".key"))
    context = manifest.max_context or manifest.model.max_position_embeddings
    vocab_size = next(_fixed(value, 2, rank=3) for value in graph.outputs if value.name == LOGITS)
    settings = _Settings(directory, vocab_size)
    decoder: dict[str, JsonValue] = {
        "filename": GRAPH,
        "session_options": {"provider_options": get_target(manifest.target).genai_providers},
        "hidden_size": manifest.model.hidden_size,
        "num_attention_heads": manifest.model.num_heads,
        "num_hidden_layers": manifest.model.num_layers,
        "num_key_value_heads": _fixed(first, 1),
        "head_size": _width(first),
        "inputs": {
            **{name: name for name in INPUTS if name in names},
            "past_key_names": f"{PAST}%d.key",
            "past_value_names": f"{PAST}%d.value",
        },
        "outputs": {
            "logits": LOGITS,
            "present_key_names": f"{PRESENT}%d.key",
            "present_value_names": f"{PRESENT}%d.value",
        },
    }
    return {
        "model": {
            "type": "decoder",
            "vocab_size": vocab_size,
            "context_length": context,
            **settings.tokens(),
            "decoder": decoder,
        },
        "search": {
            "do_sample": False,
            **settings.search(),
            "max_length": context,
            "past_present_share_buffer": manifest.contract.cache == "shared",
        },
    }


class _Settings:
    """What the checkpoint's configuration files say about tokens and sampling.

    A value of ``generation_config.json`` goes before that of ``config.json``, and before that of its text model.
    """

    def __init__(self, directory: Path, vocab_size: int) -> None:
        self._directory, self._vocab_size = directory, vocab_size
        self._generation = read_object(directory / "generation_config.json")
        config = read_object(directory / "config.json")
        text = config.get("text_config")
        self._sources = (self._generation, config, text if isinstance(text, Mapping) else {})

    def tokens(self) -> dict[str, JsonValue]:
        """``bos_token_id``, ``eos_token_id`` and ``pad_token_id``, the first two only where they are known.

        GenAI ends a row at each of the end tokens, as llmc's own loop does, and finds the end of a padded prompt by
        the padding token. Without one, the model's first end token is it, which no prompt ends with.
        """
        ends = self._ids("eos_token_id")
        pad = next(iter([*self._ids("pad_token_id"), *ends]), 0)
        found: dict[str, JsonValue] = {name: self._ids(name)[0] for name in ("bos_token_id",) if self._ids(name)}
        if (self._directory / "tokenizer.json").is_file():
            ends = [id_ for id_ in TextTokenizer.from_directory(self._directory).eos_ids if id_ < self._vocab_size]
        return {**found, **({"eos_token_id": ends} if ends else {}), "pad_token_id": pad}

    def search(self) -> dict[str, JsonValue]:
        """Settings of sampling that the model comes with."""
        return {name: self._generation[name] for name in SEARCH if self._generation.get(name) is not None}

    def _ids(self, name: str) -> list[int]:
        """Of the first file that has any; -1 and the like, by which some say that there is none, do not count."""
        for source in self._sources:
            value = source.get(name)
            listed = value if isinstance(value, list) else [value]
            ids = [item for item in listed if isinstance(item, int) and 0 <= item < self._vocab_size]
            if ids:
                return ids
        return []


def _layers(inputs: Mapping[str, ir.Value]) -> list[int]:
    """Layers with keys and values, as the graph's inputs name them."""
    keys = (re.fullmatch(rf"{re.escape(PAST)}(\d+)\.key", name) for name in inputs)
    return sorted(int(key[1]) for key in keys if key is not None and f"{PAST}{key[1]}.value" in inputs)


def _width(cache: ir.Value) -> int:
    return _fixed(cache, 3)


def _fixed(value: ir.Value, axis: int, *, rank: int = 4) -> int:
    """A dimension that is the same in each run."""
    size = value.shape[axis] if value.shape is not None and len(value.shape) == rank else None
    if not isinstance(size, int):
        raise ArtifactError(f"{value.name} is {value.shape}, and dimension {axis} must be a number; optimize again")
    return size
