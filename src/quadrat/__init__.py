"""Quadrat: what is where in a picture, on shared parts."""

import os

# albumentations asks a server for its newest version whenever it is imported, unless told not to
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# OpenMP's threads spin while they wait, and starve loader workers and other processes of the same cores: with one busy
# neighbour on two cores a training step took five times as long; read when torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
