"""Passes that make a graph smaller and plainer without changing what it computes."""
