"""The sampling graph on ONNX Runtime's CUDA provider against the CPU's."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from llmc.runtimes.session.sampling_params import SamplingParams

from .sampler_steps import GRAPHS, TYPES, Steps, random_logits


@pytest.mark.gpu
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs ONNX Runtime for CUDA"
)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("params", [*GRAPHS, (GRAPHS * 2)[:16]], ids=lambda params: str(params)[:80])
def test_cuda_runs_every_node_and_draws_the_same_tokens(
    params: SamplingParams | list[SamplingParams], dtype: str
) -> None:
    rows, vocab = 16, 50_257
    cuda = Steps(params, vocab, rows, dtype=dtype, provider="CUDAExecutionProvider")
    cpu = Steps(params, vocab, rows, dtype=dtype)
    different = 0
    for step in range(16):
        logits = random_logits(step, rows, vocab, dtype)
        logits[0, step] = np.nan
        logits[1, [step, 40_000]] = 30.0
        device, host = cuda(logits), cpu(logits)
        # Which of two equal tokens stands first is not CUDA's TopK to say; both are the most likely here.
        assert {int(device[1]), int(host[1])} <= {step, 40_000}
        different += int((np.delete(device, 1) != np.delete(host, 1)).sum())
        assert cuda.ids[0] == -1
    # Half precision makes equal logits common, and CUDA's TopK gives equal ones in another order than the CPU's,
    # which decides who stands inside top-p.
    rows_of = params if isinstance(params, list) else [params]
    ties = dtype != "float32" and any(one.top_p < 1 for one in rows_of)
    assert different <= (16 if ties else 1)
    assert all(one.greedy for one in rows_of) or cuda.step.tolist() == [16]
    assert (cuda.seqlens_k == cpu.seqlens_k).all()
