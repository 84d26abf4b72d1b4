"""Measurements. Each prints a table, and one JSON object on its last line."""

import os

# An idle OpenMP thread sleeps instead of spinning. On a machine that does other work too, a spinning thread holds the core
# that the thread it waits for needs, and short operations then take a scheduler's time slice. Must precede torch's import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
