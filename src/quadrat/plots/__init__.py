"""Pure drawing: an image and what to draw on it in, an image out."""
