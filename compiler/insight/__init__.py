"""What is in a graph, what it costs, and what this machine can do."""
