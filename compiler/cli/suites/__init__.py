"""Reports of commands as suites, for continuous integration: one module a command."""
