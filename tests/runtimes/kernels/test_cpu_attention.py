"""llmc.cpu::GroupQueryAttention against com.microsoft's operator, over one shared buffer."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from llmc.runtimes.onnxruntime.operator_support import has_input

from .operators import library

pytestmark = [
    pytest.mark.usefixtures("variant"),
    pytest.mark.skipif(
        not has_input("com.microsoft", "GroupQueryAttention", "query_seqlens"),
        reason="this ONNX Runtime's own operator, the reference here, has no query_seqlens",
    ),
]
CAPACITY = 300


def make_session(domain, *, heads, kv_heads, dim, window, packed, rotary, threads=2):
    ours = domain == "llmc.cpu"
    kv = ["", ""] if packed else ["k", "v"]
    angles = ["cos", "sin"] if rotary else ["", ""]
    if ours:
        names = ["q", *kv, "past_k", "past_v", "seqlens", "chunk", *angles]
    else:
        names = ["q", *kv, "past_k", "past_v", "seqlens", "total", *angles, *[""] * 7, "chunk"]
    while not names[-1]:
        names.pop()
    options = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": 0.3, "local_window_size": window}
    if not ours:
        options = {**options, "do_rotary": int(rotary), "local_window_size": window or -1}
    node = helper.make_node("GroupQueryAttention", names, ["y", "pk", "pv"], domain=domain, **options)
    kinds = {"seqlens": TensorProto.INT32, "chunk": TensorProto.INT32, "total": TensorProto.INT32}
    shapes = {
        "q": ["b", "s", (heads + 2 * kv_heads) * dim if packed else heads * dim],
        **{n: ["b", "s", kv_heads * dim] for n in ("k", "v")},
        **{n: ["b", kv_heads, "c", dim] for n in ("past_k", "past_v", "pk", "pv")},
        **{n: [CAPACITY, dim // 2] for n in ("cos", "sin")},
        "seqlens": ["b"],
        "chunk": ["b"],
        "total": [],
        "y": ["b", "s", heads * dim],
    }
    infos = {
        n: helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), shape) for n, shape in shapes.items()
    }
    graph = helper.make_graph([node], "g", [infos[n] for n in names if n], [infos[n] for n in ("y", "pk", "pv")])
    opsets = [
        helper.make_opsetid("", 23),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid("llmc.cpu", 1),
    ]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.register_custom_ops_library(str(library()))
    return ort.InferenceSession(model.SerializeToString(), session_options, providers=["CPUExecutionProvider"])


class Cached:
    """One operator and its cache, past and present bound to one buffer."""

    def __init__(self, domain, batch, **geometry):
        self.session = make_session(domain, **geometry)
        shape = (batch, geometry["kv_heads"], CAPACITY, geometry["dim"])
        self.cache = {name: np.zeros(shape, np.float32) for name in ("k", "v")}

    def step(self, feeds, totals, chunk):
        binding = self.session.io_binding()
        held = {**feeds, "seqlens": (totals - 1).astype(np.int32), "chunk": chunk.astype(np.int32)}
        held["total"] = np.asarray(totals.max() - chunk.max() + feeds["q"].shape[1], np.int32)
        for item in self.session.get_inputs():
            if item.name.startswith("past"):
                binding.bind_ortvalue_input(item.name, ort.OrtValue.ortvalue_from_numpy(self.cache[item.name[-1]]))
            else:
                binding.bind_ortvalue_input(item.name, ort.OrtValue.ortvalue_from_numpy(held[item.name]))
        binding.bind_output("y")
        for name in ("k", "v"):
            binding.bind_ortvalue_output(f"p{name}", ort.OrtValue.ortvalue_from_numpy(self.cache[name]))
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("window", [0, 17])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 1, 256), (8, 8, 128), (6, 2, 96), (40, 2, 32)]
)
def test_prefill_chunks_and_decode(heads, kv_heads, dim, window, packed, rotary):
    geometry = {
        "heads": heads,
        "kv_heads": kv_heads,
        "dim": dim,
        "window": window,
        "packed": packed,
        "rotary": rotary,
    }
    ours, theirs = (Cached(domain, 3, **geometry) for domain in ("llmc.cpu", "com.microsoft"))
    generator = np.random.default_rng(0)
    held = np.zeros(3, np.int64)
    angles = generator.normal(size=(CAPACITY, dim // 2)).astype(np.float32)
    # A ragged prefill, chunks in which a row rests, decode steps.
    plan = [(140, [140, 3, 60]), (7, [7, 0, 5]), (1, [1, 1, 1]), (1, [1, 1, 0]), (5, [5, 5, 5]), (1, [1, 1, 1])]
    for seq, lengths in plan:
        chunk = np.asarray(lengths, np.int64)
        widths = (
            {"q": (heads + 2 * kv_heads) * dim}
            if packed
            else {"q": heads * dim, "k": kv_heads * dim, "v": kv_heads * dim}
        )
        feeds = {n: generator.normal(size=(3, seq, w)).astype(np.float32) for n, w in widths.items()}
        feeds.update(cos=np.cos(angles), sin=np.sin(angles))
        held += chunk
        a, b = ours.step(feeds, held, chunk), theirs.step(feeds, held, chunk)
        for row, count in enumerate(lengths):
            np.testing.assert_allclose(a[row, :count], b[row, :count], rtol=2e-5, atol=2e-5)
            assert not a[row, count:].any(), "padding"
    for name in ("k", "v"):
        for row, count in enumerate(held):
            np.testing.assert_allclose(
                ours.cache[name][row, :, :count], theirs.cache[name][row, :, :count], rtol=1e-5, atol=1e-6
            )


def test_a_row_that_does_not_fit_is_refused():
    geometry = {"heads": 2, "kv_heads": 1, "dim": 32, "window": 0, "packed": True, "rotary": False}
    cached = Cached("llmc.cpu", 1, **geometry)
    feeds = {"q": np.zeros((1, 1, 128), np.float32)}
    with pytest.raises(Exception, match="does not fit"):
        cached.step(feeds, np.asarray([CAPACITY + 1]), np.asarray([1]))
