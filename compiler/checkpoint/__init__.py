"""llmc.compiler.checkpoint: where weights, configuration and tokenizer come from, read lazily."""
