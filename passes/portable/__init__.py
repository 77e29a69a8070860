"""Passes from a trace to the portable graph."""
