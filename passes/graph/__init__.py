"""Helpers for every pass: asking a graph, making nodes, evaluating parts of it."""
