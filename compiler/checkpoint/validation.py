"""A checkpoint's tensors against those that the model needs, before any work is done.

In: a weight source, the shapes of the model's parameters, its tied parameters.
Out: for each parameter the checkpoint's tensor that fills it, or one error that lists what disagrees.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.weights import WeightSource

# Named in a message before the rest is only counted.
_SHOWN = 3
# What wrappers of a model in training put into the names of its tensors.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Values of a tensor that are compared at a time.
_COMPARED = 1 << 22


def check_shapes(
    weights: WeightSource, expected: Mapping[str, tuple[int, ...]], tied: Mapping[str, str]
) -> dict[str, str]:
    """The checkpoint's tensor for each parameter of the model.

    A parameter is filled by the tensor of its own name or, if it is tied and absent, by one that shares its values.

    Args:
        weights: The checkpoint's tensors, under the model's names.
        expected: Parameter names of the model to shapes, as in its state dict.
        tied: Parameters that share another's values, e.g. ``{"lm_head.weight": "model.embed_tokens.weight"}``.

    Returns:
        Parameter names to tensor names, in the order of ``expected``; tied parameters have the same tensor.

    Raises:
        CheckpointError: tensors are missing, their shapes differ from the model's, or tied ones differ in value.
    """
    infos = weights.tensors()
    found = {name: name if name in infos else None for name in expected}
    pairs = list(tied.items())
    # Once more in the end: what filled the source may be another parameter that is tied to it.
    for name, source in [*pairs, *((source, name) for name, source in pairs), *pairs]:
        if name in found and found[name] is None:
            found[name] = found.get(source)
    missing = [name for name, tensor in found.items() if tensor is None]
    if missing:
        raise CheckpointError(
            f"{_count(len(missing), 'tensor')} of {len(expected)} that the config asks for "
            f"{'is' if len(missing) == 1 else 'are'} not in the checkpoint: {_listed(missing)}; "
            f"{_longer_names(missing, infos) or 'check that config.json and the weights belong together.'}"
        )
    result = {name: tensor for name, tensor in found.items() if tensor is not None}
    wrong = [
        f"{tensor} is {list(infos[tensor].shape)} in {infos[tensor].file or 'the checkpoint'}, "
        f"the config says {list(expected[name])}"
        for name, tensor in result.items()
        if infos[tensor].shape != tuple(expected[name])
    ]
    if wrong:
        raise CheckpointError(
            f"{_listed(wrong)}; {_count(len(wrong), 'tensor')} of {len(expected)} "
            f"{'disagrees' if len(wrong) == 1 else 'disagree'}: check that config.json and the weights belong "
            "together."
        )
    return _untwinned(weights, result, tied)


def _untwinned(weights: WeightSource, names: dict[str, str], tied: Mapping[str, str]) -> dict[str, str]:
    """One tensor for parameters that the model ties, where the checkpoint has one for each."""
    for name, source in tied.items():
        one, other = names.get(name), names.get(source)
        if one is None or other is None or one == other:
            continue
        if not _equal(weights, one, other):
            raise CheckpointError(
                f"the config ties {one} to {other}, and the checkpoint has different values for them: set "
                "tie_word_embeddings to false in config.json."
            )
        names[name] = other
    return names


def _equal(weights: WeightSource, one: str, other: str) -> bool:
    shape = weights.tensors()[one].shape
    if not shape:
        return bool(weights.read(one) == weights.read(other))
    step = max(1, _COMPARED // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        left, right = (weights.read(name, start, start + step) for name in (one, other))
        # As bytes: a NaN equals itself here.
        if left.dtype != right.dtype or left.tobytes() != right.tobytes():
            return False
    return True


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _longer_names(missing: Sequence[str], names: Iterable[str]) -> str | None:
    """What to do where all that is missing is there, with more in its names; None: it is not."""
    there = set(names)
    inner = {_WRAPPERS.sub("", name): name for name in there}
    prefixes = (name.removesuffix(missing[0]) for name in sorted(there) if name.endswith(f".{missing[0]}"))
    prefix = next((prefix for prefix in prefixes if all(prefix + name in there for name in missing)), None)
    if prefix is None and not all(name in inner for name in missing):
        return None
    example = inner[missing[0]] if prefix is None else prefix + missing[0]
    return (
        f"they are there under longer names ({example}), as wrappers in training (torch.compile, DDP, FSDP) "
        "and models that contain this one give: save the model itself, or take that part out of the names."
    )


def _listed(items: Sequence[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
