"""Run a bench: units of work, worker processes, the archive."""
