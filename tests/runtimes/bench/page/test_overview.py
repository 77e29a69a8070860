"""What was measured, on what, when."""

from __future__ import annotations

from .samples import benchmark, page, parsed, rows, section


def facts(**changes: object) -> dict[str, str]:
    found = section(parsed(page(benchmark(**changes))), "measured")
    assert found is not None
    entries = ["".join(it.itertext()) for it in found.iter() if it.tag in {"dt", "dd"}]
    return dict(zip(entries[::2], entries[1::2], strict=True))


def test_the_machine_and_the_method() -> None:
    assert facts(command=["llmc", "bench", "out/int4"]) == {
        "Date": "2026-11-30T12:00:00+00:00",
        "Command": "llmc bench out/int4",
        "Machine": "Some CPU, 6 cores, 48 GiB, avx2",
        "GPU": "NVIDIA Fake, 80 GiB",
        "System": "Linux 6, x86_64, Python 3.11.7",
        "Packages": "llmc 0.1.0, onnxruntime 1.32.0",
        "Memory bandwidth": "read 45.0 GB/s with 2 threads",
        "Method": "3 rounds, engines in turns, 2 threads each, seed 7",
        "Other load": "1% of the cores before, 2% after",
    }


def test_what_a_document_lacks_is_not_there() -> None:
    assert facts(machine={}, bandwidth={}, options={}, other_load={}, created="", llmc="") == {}


def test_engines() -> None:
    found = section(parsed(page(benchmark())), "measured")
    assert found is not None
    hash_ = "abababababab"
    assert rows(found) == [
        ["1 int4", "onnxruntime-cpu", "int4", "90.0 MB", "5.20", "0.25 s", hash_],
        ["2 int8", "onnxruntime-cpu", "int8", "140 MB", "8.30", "0.25 s", hash_],
    ]


def test_warnings() -> None:
    found = section(parsed(page(benchmark())), "measured")
    assert found is not None
    (warning,) = [it for it in found.iter("p") if it.get("class") == "warning"]
    assert "".join(warning.itertext()) == "Warning: something was <busy>"
