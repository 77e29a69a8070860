"""The timing harness: formats by name, bytes of a product, the table that is quoted."""

from __future__ import annotations

import pytest

from .speed import Format, Timing, copies, markdown


@pytest.mark.parametrize(
    ("name", "form", "size"),
    [
        ("offsets4@32", Format(4, 32, False, 8), 64 * 3 * (16 + 4)),
        ("q5@64", Format(5, 64, True, 8), 64 * 2 * (40 + 2)),
        ("q6@64/16", Format(6, 64, True, 16), 64 * 2 * (48 + 2)),
    ],
)
def test_a_format_and_what_it_reads(name: str, form: Format, size: float) -> None:
    """The last block is as long as the others."""
    assert Format.parse(name) == form
    assert form.packed_bytes(96, 64) == size
    assert copies(form, 96, 64, 1) == round(1e6 / size)
    assert copies(form, 96, 64, 0) == 1


def test_a_product_of_one_row_reads_and_one_of_many_multiplies() -> None:
    one = Timing("64x1000", "q4@64", 1, 1e-6, 0.5e-6)
    assert one.read == pytest.approx(34.0)
    assert one.multiplied == pytest.approx(64.0)
    assert one.line().split() == ["64x1000", "q4@64", "1", "1.0", "0.5", "34.0", "64"]
    many = Timing("64x1000", "q4@64", 16, 2e-6, 2e-6)
    other = Timing("64x1000", "q8@64", 16, 4e-6, 4e-6)
    assert markdown([one, many, other]).splitlines() == [
        "| shape | weights | 1 row | 16 rows |",
        "| --- | --- | ---: | ---: |",
        "| 64x1000 | q4@64 | 34.0 GB/s | 512 Gmul/s |",
        "| 64x1000 | q8@64 |  | 256 Gmul/s |",
    ]
