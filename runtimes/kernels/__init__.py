"""The CPU operators of llmc: C sources, compiled where they run."""
