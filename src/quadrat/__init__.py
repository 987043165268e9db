"""Quadrat: what is where in a picture, on shared parts."""

import os

# albumentations asks a server for its newest version whenever it is imported, unless told not to
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
