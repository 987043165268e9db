"""Trunks that turn an image into named feature maps; the contract is in `base`."""
