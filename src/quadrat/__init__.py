"""Quadrat: what is where in a picture, on shared parts."""

__version__ = "0.1.0"
