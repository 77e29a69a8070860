"""llmc.runtimes: engines, sessions, generation and measurement."""
