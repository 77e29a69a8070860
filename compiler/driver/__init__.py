"""The commands as functions: export, optimize, build, compile, verify."""
