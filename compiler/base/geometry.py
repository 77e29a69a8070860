"""The numbers of a decoder that decide shapes, cache size and how often a fusion must fire.

In: a transformers configuration (any object with its attributes; transformers itself is not imported).
Out: :class:`ModelGeometry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmc.compiler.base.errors import UnsupportedModelError

# transformers' own name comes first: its configurations translate it (``attribute_map``); the other names are those
# of configurations without a translation.
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model")
_NUM_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_NUM_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_INTERMEDIATE_SIZE = ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "decoder_ffn_dim", "ffn_hidden_size")
_MAX_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")


@dataclass(frozen=True)
class ModelGeometry:
    """Shapes of a causal language model, as its configuration states them.

    Attributes:
        model_type: transformers' name of the architecture, as ``llama``.
        num_layers: Decoder layers.
        hidden_size: Width of the residual stream.
        num_heads: Query heads; 0 where no layer has attention. Of layers that differ, the most; so for all sizes.
        num_kv_heads: Key and value heads.
        head_dim: Width of one query or key head.
        value_head_dim: Width of one value head (narrower than ``head_dim`` in multi-head latent attention).
        vocab_size: Width of the logits.
        intermediate_size: Width of the feed-forward block; the widest one where layers differ.
        max_position_embeddings: Longest context that the model was made for; None where it states no limit.
        sliding_windows: For each layer, the last positions that a token sees (itself included), None: all.
        tie_word_embeddings: The output projection is the embedding table.
    """

    model_type: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_head_dim: int
    vocab_size: int
    intermediate_size: int
    max_position_embeddings: int | None
    sliding_windows: tuple[int | None, ...]
    tie_word_embeddings: bool

    def __post_init__(self) -> None:
        """Refuse what no decoder can have.

        Raises:
            UnsupportedModelError: a size is not positive, or two of them contradict each other.
        """
        of_heads = ("num_kv_heads", "head_dim", "value_head_dim") if self.num_heads else ()
        names = ("num_layers", "hidden_size", "vocab_size", "intermediate_size", *of_heads, "max_position_embeddings")
        sizes = [
            *((name, getattr(self, name)) for name in names),
            *(("sliding window", w) for w in self.sliding_windows),
        ]
        for name, size in sizes:
            if size is not None and size <= 0:
                raise UnsupportedModelError(f"{self.model_type}: {name} is {size}, not positive; correct config.json")
        if len(self.sliding_windows) != self.num_layers:
            raise UnsupportedModelError(
                f"{self.model_type}: {len(self.sliding_windows)} layer types for {self.num_layers} layers; "
                "correct config.json"
            )

    @classmethod
    def from_config(cls, config: Any) -> ModelGeometry:
        """Read a transformers configuration; of a multimodal one, its text model's.

        A configuration leaves out what transformers has a rule for, and the same rules hold here: as many key-value
        heads as heads, ``head_dim = hidden_size / heads``, ``intermediate_size = 4 * hidden_size``.

        Raises:
            UnsupportedModelError: a size is missing or impossible.
        """
        # A multimodal configuration keeps the decoder's numbers one level down.
        text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
        heads = _first(text, _NUM_HEADS) or 0
        hidden = _required(text, _HIDDEN_SIZE, "hidden size")
        layers = _required(text, _NUM_LAYERS, "number of layers")
        head_dim = _head_dim(text, hidden, heads) if heads else 0
        kv_heads = _num_kv_heads(text, heads)
        if heads and heads % kv_heads and not isinstance(_read(text, _NUM_HEADS[0]), list | tuple):
            raise UnsupportedModelError(
                f"{_label(text)}: {heads} attention heads cannot share {kv_heads} key-value heads evenly; "
                "correct config.json"
            )
        return cls(
            model_type=str(getattr(text, "model_type", "unknown") or "unknown"),
            num_layers=layers,
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            value_head_dim=(_first(text, ("v_head_dim",)) or head_dim) if heads else 0,
            vocab_size=_required(text, ("vocab_size",), "vocabulary size"),
            intermediate_size=_first(text, _INTERMEDIATE_SIZE) or 4 * hidden,
            max_position_embeddings=_max_positions(text),
            sliding_windows=_sliding_windows(text, layers),
            tie_word_embeddings=_tied(config, text),
        )


def _read(config: Any, name: str) -> Any:
    """The attribute, None where it is missing; a list where each layer has its own."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # how a configuration with settings per layer refuses to give one number
        return [getattr(layer, name, None) for layer in config.per_layer_config]


def _first(config: Any, names: Sequence[str]) -> int | None:
    """The first of the attributes that is set to a number, or to a list of numbers, of which it is the largest."""
    for name in names:
        value = _read(config, name)
        if isinstance(value, list | tuple):
            value = max((item for item in value if isinstance(item, int)), default=None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def stated_context(config: Any) -> int | None:
    """The longest context that a transformers configuration states; None where it states no limit."""
    return _max_positions(config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config)


def _max_positions(config: Any) -> int | None:
    positions = _first(config, _MAX_POSITIONS)
    return positions if positions is not None and positions > 0 else None  # XLNet says "no limit" by -1


def _required(config: Any, names: Sequence[str], what: str) -> int:
    value = _first(config, names)
    if value is None:
        raise UnsupportedModelError(
            f"{_label(config)}: the configuration states no {what} ({names[0]}), which llmc needs in config.json"
        )
    return value


def _num_kv_heads(config: Any, heads: int) -> int:
    if _read(config, "multi_query") and not _read(config, "new_decoder_architecture"):
        return 1  # Falcon's and GPT-BigCode's way to say it; their num_kv_heads is then not in use
    return (_first(config, _NUM_KV_HEADS) or heads) if heads else 0


def _head_dim(config: Any, hidden: int, heads: int) -> int:
    # Multi-head latent attention first: there ``head_dim``, where it exists, is the rotary part alone.
    nope, rope = _first(config, ("qk_nope_head_dim",)), _first(config, ("qk_rope_head_dim",))
    if nope is not None and rope is not None:
        return nope + rope
    return _first(config, ("head_dim", "d_kv", "kv_channels")) or hidden // heads


def _sliding_windows(config: Any, layers: int) -> tuple[int | None, ...]:
    # Some configurations say "off" by zero, some by a flag beside a number.
    window = _first(config, ("sliding_window",)) or None
    if _read(config, "use_sliding_window") is False:
        window = None
    types = _read(config, "layer_types")
    if types is None:
        return (window,) * layers
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _tied(config: Any, text: Any) -> bool:
    value = _read(config, "tie_word_embeddings")
    return bool(_read(text, "tie_word_embeddings") if value is None else value)


def _label(config: Any) -> str:
    return str(getattr(config, "model_type", "") or type(config).__name__)
