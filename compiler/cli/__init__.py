"""llmc.compiler.cli: the commands; each parses, makes one library call and renders."""
