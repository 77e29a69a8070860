"""Matrix products without copies of what they broadcast by themselves.

    MatMul(Expand(x [1, m, k], [batch, m, k]), y [batch, k, n])   →   MatMul(x, y)

Rotary embeddings expand their frequencies to the batch before they meet the positions. torch reads the batch from
whichever input has it, a KV cache for one, and the angles would then seem to depend on that input.
"""

from __future__ import annotations

from itertools import zip_longest

import onnx_ir as ir


def drop_batch_expands(model: ir.Model) -> None:
    """Let each MatMul of the graph take what was expanded to the batch of its other operand; in place."""
    for node in model.graph:
        if node.op_type == "MatMul" and not node.domain:
            for index in (0, 1):
                _drop_expand(node, index)


def _drop_expand(product: ir.Node, index: int) -> None:
    expanded, other = product.inputs[index], product.inputs[1 - index]
    expand = expanded.producer() if expanded is not None else None
    if expand is None or expand.op_type != "Expand" or expand.domain:
        return
    source = expand.inputs[0]
    shapes = [value.shape if value is not None else None for value in (source, expanded, other)]
    if any(shape is None or len(shape) < 2 for shape in shapes):
        return
    before, after, beside = ([*reversed(shape)] for shape in shapes if shape is not None)
    if before[:2] != after[:2] or not all(map(_is_known, after[:2])):
        return
    # Batch dimensions from the right, as broadcasting aligns them; what is missing is as good as 1.
    for old, new, by in zip_longest(before[2:], after[2:], beside[2 : len(after)], fillvalue=1):
        if not _is_known(new) or new not in (old, by):
            return
    product.replace_input_with(index, source)


def _is_known(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, int) or dim.value is not None
