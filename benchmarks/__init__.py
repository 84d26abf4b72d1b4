"""Measurements. Each prints a table, and one JSON object on its last line."""

import os

# An idle OpenMP thread sleeps instead of spinning. On a machine that does other work too, a spinning thread holds the
# core that the thread it waits for needs, and short operations take a time slice of the scheduler. Precedes torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
