"""Weights as small numbers: which kinds there are, which weight gets which, and how the numbers are chosen."""
