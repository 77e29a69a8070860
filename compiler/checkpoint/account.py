"""An account of a checkpoint's tensors: each is used, knowingly unused, or named in an error.

In: the tensors of the files, and those that the model's parameters are made of.
Out: the tensors that nothing explains, and the sentence that refuses them.

A tensor that is left out silently is a model that computes something else: a bias that the configuration does not
ask for, the scale of a weight in codes, an adapter that was never merged. Harmless ones are known by the table
``KINDS``, by what transformers' class of the model ignores itself, or because a larger model that contains this one
has them.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import onnx_ir as ir

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.weights import TensorInfo

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

log = logging.getLogger(__name__)

PLAIN = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
"""Types whose numbers are the values of a weight; all others are codes that a scheme must explain."""
_SHOWN = 3
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|blk)\.(\d+)\.")
_DRAFT_LEAVES = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head|nextn|mtp_block)(\.|$)")


@dataclass(frozen=True)
class Kind:
    """Tensors that a checkpoint may have and no text model needs.

    Attributes:
        what: Noun, in the plural.
        pattern: Found in their names.
        holds: What else must be true of them; None: nothing.
    """

    what: str
    pattern: re.Pattern[str]
    holds: Callable[[TensorInfo], bool] | None = None

    def explains(self, info: TensorInfo) -> bool:
        """Whether the tensor is of this kind."""
        return self.pattern.search(info.name) is not None and (self.holds is None or self.holds(info))


def _single(info: TensorInfo) -> bool:
    return math.prod(info.shape) <= 1


def _square_or_single(info: TensorInfo) -> bool:
    return _single(info) or (len(info.shape) == 4 and info.shape[-1] == info.shape[-2])


def _whole_numbers(info: TensorInfo) -> bool:
    return info.dtype in {ir.DataType.INT64, ir.DataType.INT32}


_TOWERS = (
    "vision_tower|vision_model|vision_encoder|vision_embed_tokens|visual|image_newline|image_embed|vpm|resampler|"
    "multi_modal_projector|mm_projector|vision_projection|vision_projector|connector|vqmodel|embed_vision|"
    "audio_tower|audio_model|audio_encoder|audio_projection|embed_audio|speech_encoder|talker|token2wav|code2wav"
)
KINDS: tuple[Kind, ...] = (
    Kind("rotary factors, which the configuration has", re.compile(r"^rope_(freqs|factors_\w+)\.weight$")),
    Kind(
        "rotary frequencies",
        re.compile(
            r"(^|\.)(\w*inv_freq|rotary\w*\.(cos_cached|sin_cached|cos_sin_cache)|freqs_cis)$|(^|\.)attn_rot_embd\.weight$"
        ),
    ),
    Kind(
        "tables of positions", re.compile(r"(^|\.)embed_positions(\.weights|\._float_tensor)$|attn\.embed_positions$")
    ),
    Kind("version numbers", re.compile(r"(^|\.)(encoder|decoder)\.version$"), _single),
    Kind(
        "causal masks",
        re.compile(r"(^|\.)\w*(attn|attention)\.(bias|masked_bias|causal_mask|attn_mask)$"),
        _square_or_single,
    ),
    Kind("position numbers", re.compile(r"(^|\.)position_ids$"), _whole_numbers),
    Kind("scales of a cache in small numbers", re.compile(r"(^|\.)(k|v|q|kv|prob)_scale$"), _single),
    Kind("counters", re.compile(r"(^|\.)(num_batches_tracked|total_ops|total_params)$"), _single),
    Kind("draft layers", re.compile(r"(^|\.)(mtp\w*|nextn|medusa_heads?|draft_model|eagle_module)(\.|$)")),
    Kind("towers for images and sound", re.compile(rf"^(model\.)?({_TOWERS})(\.|$)")),
    Kind("towers for images and sound", re.compile(r"^(v|a|mm)\.")),
    Kind(
        "heads for another task",
        re.compile(
            r"^(\w+\.)?(v_head|value_head|score|classifier|classification_head|qa_outputs|reward_head|pooler"
            r"|cls\.seq_relationship|cls\.output|nsp_cls|discriminator_predictions)(\.|$)"
        ),
    ),
)
"""What checkpoints carry beside a text model's weights; a text model computes the same without them."""


@dataclass(frozen=True)
class _Advice:
    """What to say of tensors that nothing explains.

    Attributes:
        pattern: Found in their names.
        text: What they show, and what to do.
        cause: They show why other tensors are missing, too.
    """

    pattern: re.Pattern[str]
    text: str
    cause: bool = True


_ADVICE = (
    _Advice(
        re.compile(r"^base_model\.model\.|(^|\.)lora_|\.base_layer\.|(^|\.)modules_to_save\."),
        "PEFT gives such names, and an adapter that is not merged has them: merge it (merge_and_unload) and save "
        "what comes out, or keep base and adapter in directories of their own and name the adapter with --adapter",
    ),
    _Advice(
        re.compile(
            r"(^|[._])(scales?|scale_inv|scale_inverse|weight_scale_2|input_scale|qweight|qzeros|g_idx|weight_packed|absmax"
            r"|zero_point|SCB|quant_map|quant_state\S*|weight_format|blocks)$"
        ),
        "these belong to weights in small numbers, and config.json has no quantization_config that says which: name "
        "the original checkpoint, or put the quantization_config back",
    ),
    _Advice(
        re.compile(r"(^|\.|_)bias$"),
        "config.json says that these layers have no bias (attention_bias, mlp_bias or the like): correct it",
        cause=False,
    ),
)
_GENERAL = "check that config.json and the weights belong together"


def surplus(
    tensors: Mapping[str, TensorInfo],
    used: Collection[str],
    config: PreTrainedConfig,
    *,
    patterns: Iterable[str] = (),
    ignored: Sequence[str] = (),
) -> tuple[TensorInfo, ...]:
    """Tensors that nothing is made of and that are of no harmless kind; the harmless ones are counted in the log.

    Args:
        tensors: All of the checkpoint.
        used: Names of those that parameters of the model, or of a larger one that contains it, are made of.
        config: Of the model, which says how many layers it has and how many of them draft.
        patterns: Regular expressions of names that transformers itself leaves out for this class of model.
        ignored: Names, or patterns with ``*``, that the user says are of no use.
    """
    unused = [info for name, info in tensors.items() if name not in used]
    expressions = [re.compile(pattern) for pattern in patterns]
    draft = _draft_layers(unused, config)
    counts: Counter[str] = Counter()
    rest = []
    for info in unused:
        what = "as --ignore-tensor says" if any(fnmatchcase(info.name, pattern) for pattern in ignored) else None
        # What a used weight has beside it is part of its layer, whatever a pattern says.
        if what is None and not _is_bias_of(info, used):
            what = _explanation(info, draft, expressions)
        if what:
            counts[what] += 1
        else:
            rest.append(info)
    for what, count in counts.items():
        log.info("%d tensors of the checkpoint are left out: %s", count, what)
    return tuple(rest)


def left_out(names: Iterable[str], used: Collection[str], ignored: Sequence[str]) -> tuple[str, ...]:
    """What ``--ignore-tensor`` leaves out of a checkpoint, sorted.

    Args:
        names: Of all tensors.
        used: Of those that parameters are made of, whatever a pattern says.
        ignored: Names, or patterns with ``*``.
    """
    return tuple(
        sorted(name for name in names if name not in used and any(fnmatchcase(name, item) for item in ignored))
    )


def require_no_surplus(rest: Sequence[TensorInfo], model_type: str) -> None:
    """Refuse tensors that nothing explains.

    Raises:
        CheckpointError: there are any; it names the first with dtype and shape, and says what to do.
    """
    if not rest:
        return
    advice, first = _advised(rest)
    shown = ", ".join(described(info) for info in first[:_SHOWN])
    more = len(rest) - min(_SHOWN, len(first))
    several = f" and {more} more" if more > 0 else ""
    raise CheckpointError(
        f"{shown}{several} {'are' if len(rest) > 1 else 'is'} in the checkpoint, and the {model_type} model of the "
        f"configuration has no place for {'them' if len(rest) > 1 else 'it'}; {advice}. Where they are known to be "
        "of no use, name them with --ignore-tensor."
    )


def require_no_cause(rest: Sequence[TensorInfo], model_type: str) -> None:
    """Refuse tensors that nothing explains and that say why others are missing: of adapters, of small numbers.

    Raises:
        CheckpointError: there are any.
    """
    if any(advice.cause and advice.pattern.search(info.name) for advice in _ADVICE for info in rest):
        require_no_surplus(rest, model_type)


def require_plain(weights: Sequence[TensorInfo], tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse weights whose stored numbers are codes.

    Args:
        weights: Tensors that float parameters are made of.
        tensors: All of the checkpoint, among which the scales are looked for.

    Raises:
        CheckpointError: the type of one is none of :data:`PLAIN`.
    """
    codes = list({info.name: info for info in weights if info.dtype not in PLAIN}.values())
    if not codes:
        return
    info = codes[0]
    stem = info.name.removesuffix(".weight")
    beside = [
        name for name in tensors if name != info.name and name.startswith(stem) and "scale" in name[len(stem) :]
    ]
    scale = f"; {described(tensors[beside[0]])} seems to be its scale" if beside else ""
    several = f" and {len(codes) - 1} more tensors" if len(codes) > 1 else ""
    raise CheckpointError(
        f"{described(info)}{several}: numbers of this type are codes and no values, and nothing in the checkpoint "
        f"says how to read them (quantization_config in config.json){scale}; name the original checkpoint, or put "
        "the quantization_config back."
    )


def described(info: TensorInfo) -> str:
    """``name (BFLOAT16 [64, 64] in model.safetensors)``."""
    kind = info.stored_type or info.dtype.name
    place = f" in {info.file}" if info.file else ""
    return f"{info.name} ({kind} {list(info.shape)}{place})"


def _is_bias_of(info: TensorInfo, used: Collection[str]) -> bool:
    stem, _, leaf = info.name.rpartition(".")
    return leaf == "bias" and len(info.shape) == 1 and f"{stem}.weight" in used


def _explanation(info: TensorInfo, draft: Collection[int], expressions: Sequence[re.Pattern[str]]) -> str | None:
    """Why the tensor may be left out; None: nothing says so."""
    layer = _LAYER.search(info.name)
    if layer is not None and int(layer[1]) in draft:
        return "draft layers"
    kind = next((kind.what for kind in KINDS if kind.explains(info)), None)
    if kind is None and any(expression.search(info.name) for expression in expressions):
        return "transformers has no use for them in this class of model"
    return kind


def _draft_layers(unused: Sequence[TensorInfo], config: PreTrainedConfig) -> set[int]:
    """Numbers of layers behind the model's own that guess further tokens."""
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int):
        return set()
    stated = max(
        (
            number
            for name in ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "mtp_num_layers")
            if isinstance(number := getattr(config, name, 0), int)
        ),
        default=0,
    )
    layers = [(int(found[1]), info.name) for info in unused if (found := _LAYER.search(info.name))]
    shown = {layer for layer, name in layers if layer >= count and _DRAFT_LEAVES.search(name)}
    return shown | set(range(count, count + stated))


def _advised(rest: Sequence[TensorInfo]) -> tuple[str, list[TensorInfo]]:
    """What to say, and the tensors that it is about."""
    for advice in _ADVICE:
        if about := [info for info in rest if advice.pattern.search(info.name)]:
            return advice.text, about
    return _GENERAL, list(rest)
