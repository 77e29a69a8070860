"""Argument types that the benchmark commands share."""

from __future__ import annotations

import argparse


def positive_numbers(text: str) -> tuple[int, ...]:
    """``"128,512"`` -> ``(128, 512)``; what is not a list of positive whole numbers is refused as argparse does."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of positive numbers, as 128,512")
    return values
