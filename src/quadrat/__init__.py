"""Quadrat: what is where in a picture, on shared parts."""

import os

# albumentations asks a server for its newest version whenever it is imported, unless told not to
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# OpenMP's threads spin while they wait and so starve loader workers, and whatever else runs on the same cores; with one busy
# neighbour on two cores a training step took 0.47 s, this brief spin makes it 0.30 s, and alone it is as fast as before
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
