"""Load on an engine or a server: requests that arrive while others run, and how long each waits."""
