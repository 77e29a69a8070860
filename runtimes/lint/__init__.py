"""What a runtime makes of a graph, node by node."""
