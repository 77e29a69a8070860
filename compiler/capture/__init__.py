"""llmc.compiler.capture: a Hugging Face model becomes a portable graph, without loading a weight."""
