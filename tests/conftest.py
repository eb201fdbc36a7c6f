"""Settings of every test."""

import os

# On a machine that does other things too, threads that spin while they wait make a test several times as long; OpenMP
# reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
