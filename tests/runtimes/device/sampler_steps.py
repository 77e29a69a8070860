"""The sampling graph run step by step, for tests of it on either provider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from llmc.runtimes.device.sampler import (
    UNIFORM_STEPS,
    SamplerKind,
    build_sampler,
    kind_of,
    settings_of,
    uniforms,
)
from llmc.runtimes.session.capabilities import RowState
from llmc.runtimes.session.sampling_params import SamplingParams

Array = np.ndarray[Any, Any]
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
STATE = {"next_step": "step", "next_seqlens_k": "seqlens_k"}
FILTERS: list[dict[str, float]] = [
    {},
    {"min_p": 0.05},
    {"top_k": 1},
    {"top_k": 50},
    {"top_p": 0.9},
    {"top_k": 40, "top_p": 0.8},
    {"top_p": 0.95, "min_p": 0.02},
    {"top_k": 200, "top_p": 0.7, "min_p": 0.1},
    {"top_k": 1000, "top_p": 1e-4},
]
GRAPHS = [SamplingParams(), *(SamplingParams(temperature=0.7, **fields) for fields in FILTERS)]


class Steps:
    """Runs a sampling graph step by step; ``in_place`` binds each output onto its input's memory."""

    def __init__(
        self,
        params: SamplingParams | Sequence[SamplingParams],
        vocab: int,
        rows: int,
        *,
        dtype: str = "float32",
        draws: Array | None = None,
        in_place: bool = False,
        provider: str = "CPUExecutionProvider",
        kind: SamplerKind | None = None,
        **options: Any,
    ) -> None:
        every = [params] * rows if isinstance(params, SamplingParams) else params
        kind = kind or kind_of(every, vocab)
        model = build_sampler(kind, vocab, TYPES[dtype], **options)
        onnx.checker.check_model(model, full_check=True)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = 1, 3
        if provider != "CPUExecutionProvider":
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        self.session = ort.InferenceSession(model.SerializeToString(), settings, providers=[provider])
        self.type, self.in_place = TYPES[dtype], in_place
        states = [RowState(0, one, row, 0, 1) for row, one in enumerate(every)]
        self.settings = settings_of(states, kind, vocab)
        self.uniforms = uniforms(states, 0) if draws is None else draws.astype(np.float32)
        if len(self.uniforms) < UNIFORM_STEPS:
            self.uniforms = np.resize(self.uniforms, (UNIFORM_STEPS, rows))
        self.step = np.zeros(1, np.int64)
        self.seqlens_k = np.arange(rows, dtype=np.int32)
        self.active = np.ones(rows, np.int32)
        self.ids = np.zeros((rows, 1), np.int64)

    def __call__(self, logits: Array) -> Array:
        """Sample logits [batch, vocab], float32 but of values that the graph's type has; the tokens, [batch]."""
        binding = self.session.io_binding()
        binding.bind_ortvalue_input("logits", self._logits(logits))
        names = {item.name for item in self.session.get_inputs()}
        values = {name: ort.OrtValue.ortvalue_from_numpy(getattr(self, name)) for name in names - {"logits"}}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        outputs = {"next_ids": self.ids}
        state = {output: name for output, name in STATE.items() if name in names}
        for output, name in state.items():
            outputs[output] = getattr(self, name) if self.in_place else np.empty_like(getattr(self, name))
        for output, array in outputs.items():
            binding.bind_ortvalue_output(output, ort.OrtValue.ortvalue_from_numpy(array))
        self.session.run_with_iobinding(binding)
        for output, name in state.items():
            setattr(self, name, outputs[output])
        return self.ids[:, 0].copy()

    def _logits(self, logits: Array) -> Any:
        batch = np.ascontiguousarray(logits[:, None])
        if self.type == TensorProto.FLOAT:
            return ort.OrtValue.ortvalue_from_numpy(batch)
        if self.type == TensorProto.FLOAT16:
            return ort.OrtValue.ortvalue_from_numpy(batch.astype(np.float16))
        bits = batch.astype(ml_dtypes.bfloat16).view(np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, self.type)


def random_logits(seed: int, rows: int, vocab: int, dtype: str = "float32", spread: float = 3.0) -> Array:
    values = (np.random.default_rng(seed).standard_normal((rows, vocab)) * spread).astype(np.float32)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return values.astype(kind).astype(np.float32)
