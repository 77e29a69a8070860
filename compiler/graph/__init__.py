"""What capture, passes and writer share of a graph: lazy weights, llmc operators, the writer."""
