"""Passes from a target graph to the one that an engine opens."""
