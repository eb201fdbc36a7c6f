"""Settings of every test."""

import os

# As the command line has it, see mrcnn_cli/__main__.py; it must stand before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
