"""The commands, one a file: parse, one library call, render."""
