"""Small changes to files, each drawn by a seeded generator: bytes, JSON, safetensors headers, ONNX graphs.

In: a generator and content. Out: changed content; the same generator gives the same change.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 7, 255, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308,
    "", "x", "0", "-1", "a/b", "../x",
    "é\u202e\0", "x" * 3000, [], [None], [[]], {}, {"x": {}}, [1, 2, 3], "bfloat16", "main.py",
)  # fmt: skip
TEXTS = (
    b"",
    b"null",
    b"[]",
    b"{",
    b"\xff\xfe{}",
    b"\xef\xbb\xbf{}",
    b"[" * 5000,
    b"NaN",
    b'{"a": 1, "a": 2}',
    b"\0" * 64,
)
Change = Callable[[random.Random, bytes], bytes]


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip bits, cut, insert, repeat, zero, append, or write a large number."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        # Headers stand at the front, and most of a file is weights.
        end = len(out) if rng.random() < 0.4 else min(len(out), 512)
        at, size = rng.randrange(end + 1), rng.choice((1, 4, 8, 64))
        kind = rng.randrange(7)
        if kind == 0:
            for place in range(at, min(at + size, len(out))):
                out[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : None if rng.random() < 0.5 else at + size]
        elif kind == 2:
            out[at:at] = rng.randbytes(size)
        elif kind == 3:
            out[at:at] = out[at : at + size]
        elif kind == 4:
            out[at : at + size] = bytes(len(out[at : at + size]))
        elif kind == 5:
            out += rng.randbytes(size)
        else:
            out[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**32, 2**62, 2**64 - 1)))
    return bytes(out)


def change_json(rng: random.Random, data: bytes) -> bytes:
    """Give some places of a JSON file another value, take them out, or spoil the text."""
    if rng.random() < 0.1:
        return rng.choice(TEXTS)
    if rng.random() < 0.1:
        return change_bytes(rng, data)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _changed(rng, value)
    return json.dumps(value).encode()


def _changed(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """The value with one place changed, most often not far below the top."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05 + 0.2 * bool(depth):
        return _odd(rng, value)
    if isinstance(value, dict):
        key = rng.choice(sorted(value))
        kind = rng.random()
        if kind < 0.12:
            return {name: item for name, item in value.items() if name != key}
        if kind < 0.2:
            return {**value, rng.choice(("x", "", key.upper(), key + ".weight")): value[key]}
        return {**value, key: _changed(rng, value[key], depth + 1)}
    at = rng.randrange(len(value))
    if rng.random() < 0.2:
        return value[:at] + value[at + 1 :]
    return [*value[:at], _changed(rng, value[at], depth + 1), *value[at + 1 :]]


def _odd(rng: random.Random, value: Any) -> Any:
    """Another value; at times one that is nearly right."""
    if rng.random() < 0.4:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return rng.choice((value + 1, value - 1, value * 2, -value, str(value), float(value), [value]))
        if isinstance(value, str):
            return rng.choice((value + "x", value[:-1], value.upper(), [value], {value: value}))
    return rng.choice(ODD)


def change_header(rng: random.Random, data: bytes) -> bytes:
    """Change the JSON header of a safetensors file, at times its length alone, and leave the tensors."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + size], data[8 + size :]
    if rng.random() < 0.15:
        return (
            struct.pack("<Q", rng.choice((0, 1, size - 1, size + 1, len(data), 2**31, 2**63, 2**64 - 1))) + data[8:]
        )
    changed = change_json(rng, header)
    return struct.pack("<Q", len(changed)) + changed + body


def change_body(rng: random.Random, data: bytes) -> bytes:
    """Change the tensors of a safetensors file, its length or its values, and leave the header."""
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    body = data[begin:]
    kind = rng.randrange(4)
    if kind == 0:
        return data[: begin + rng.randrange(len(body))]
    if kind == 1:
        return data + rng.randbytes(rng.choice((1, 8, 4096)))
    at = rng.randrange(len(body) - 64)
    piece = rng.choice((b"\xff" * 64, b"\x80\x7f" * 32, rng.randbytes(64), bytes(64)))
    return data[:begin] + body[:at] + piece + body[at + 64 :]


def change_graph(rng: random.Random, data: bytes) -> bytes:
    """Change an ONNX graph's bytes, or one of its nodes, types or tables as a wrong tool would."""
    if rng.random() < 0.4:
        return change_bytes(rng, data)
    import onnx

    model = onnx.load_from_string(data)
    node = rng.choice(list(model.graph.node))
    kind = rng.randrange(9)
    if kind == 0:
        node.op_type = rng.choice(("Identity", "Nothing", "", "MatMul"))
    elif kind == 1:
        node.domain = rng.choice(("", "llmc", "com.microsoft", "org.nobody"))
    elif kind == 2 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(("", "nobody", node.output[0]))
    elif kind == 3 and node.attribute:
        attribute = rng.choice(list(node.attribute))
        attribute.i, attribute.type = rng.choice((-1, 0, 2**62)), onnx.AttributeProto.INT
    elif kind == 4:
        model.graph.node.remove(node)
    elif kind == 5 and model.graph.initializer:
        tensor = rng.choice(list(model.graph.initializer))
        tensor.dims[:] = rng.choice(([], [-1], [0], [2**40], [3, 3, 3]))
    elif kind == 6 and model.graph.initializer:
        tensor = rng.choice(list(model.graph.initializer))
        for entry in tensor.external_data:
            entry.value = rng.choice(("-1", "x", "../nobody", str(2**62), ""))
        tensor.data_type = rng.choice((tensor.data_type, 0, 8, 99))
    elif kind == 7:
        del model.opset_import[:]
    else:
        del (model.graph.input if rng.random() < 0.5 else model.graph.output)[:]
    return bytes(model.SerializeToString())
