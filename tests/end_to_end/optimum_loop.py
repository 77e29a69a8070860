"""optimum's ORTModelForCausalLM over a portable graph: run by an interpreter that has ``optimum-onnx[onnxruntime]``.

In: on stdin ``{"directory": …, "prompts": [[id, …], …], "count": …, "pad": …}``. Out: on stdout the greedy tokens,
``{"alone": [[…]], "batch": [[…]]}``: of each prompt alone, and of all in one batch, padded on the left.
It imports nothing of llmc: the two need different versions of transformers.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def generate(model: Any, prompts: list[list[int]], count: int, pad: int) -> list[list[int]]:
    """Greedy tokens of each row; no token ends a row."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=None,
    )
    rows: list[list[int]] = made[:, width:].tolist()
    return rows


def main() -> None:
    """Answer the request on stdin."""
    from optimum.onnxruntime import ORTModelForCausalLM  # type: ignore[import-not-found]

    request = json.load(sys.stdin)
    model = ORTModelForCausalLM.from_pretrained(request["directory"], file_name="model.onnx", use_cache=True)
    prompts, count, pad = request["prompts"], request["count"], request["pad"]
    answer = {
        "alone": [generate(model, [prompt], count, pad)[0] for prompt in prompts],
        "batch": generate(model, prompts, count, pad),
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
