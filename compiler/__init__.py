"""llmc.compiler: command line, checkpoints, capture, operators, driver, verification."""
