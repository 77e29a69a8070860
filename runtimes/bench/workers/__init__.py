"""Processes that are measured: the protocol with them, ours and the peers."""
