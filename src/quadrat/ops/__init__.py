"""Tensors in, tensors out: no parameters, no config, no Lightning."""
