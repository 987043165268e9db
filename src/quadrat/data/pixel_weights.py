"""What each pixel weighs beside its class: U-Net's weight of the gaps between cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import torch

from quadrat.structures import IGNORE_INDEX, Targets


class BorderWeights:
    """U-Net's separation border (Ronneberger 2015, eq. 2): w0 exp(-(d1 + d2)² / 2σ²) on background, 0 elsewhere.

    d1 and d2 are the distances of a pixel to the nearest and the second nearest cell, in pixels between centres; a cell
    is an 8-connected region of one class other than 0. This is the second term of the equation alone: the loss adds it
    to the first, the weight of the pixel's class. Below w0 / 250000 it counts as 0, as it does with fewer than two cells.
    """

    REACH = 5.0  # in sigmas; exp(-25 / 2) is 4e-6

    def __init__(self, w0: float = 10.0, sigma: float = 5.0) -> None:
        if w0 < 0 or sigma <= 0:
            raise ValueError(f"border weights need w0 of 0 or more and a sigma above 0, got {w0} and {sigma}")
        self.w0, self.sigma = w0, sigma

    def __call__(self, targets: Targets) -> Targets:
        """The same truth with ``pixel_weights`` (H, W) float32; ValueError where there is no semantic map."""
        if targets.semantic is None:
            raise ValueError(f"image {targets.image_id}: no semantic map, so there are no cells to keep apart")
        return replace(targets, pixel_weights=torch.from_numpy(self.weights(targets.semantic.numpy())))

    def weights(self, labels: np.ndarray) -> np.ndarray:
        """The border term (H, W) float32 of a semantic map (H, W)."""
        reach = self.REACH * self.sigma
        nearest = np.full(labels.shape, np.inf, dtype=np.float32)
        second = nearest.copy()
        for window, cell in cells(labels, margin=int(np.ceil(reach))):
            distance = cv2.distanceTransform((~cell).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
            nearest[window] = np.minimum(nearest[window], distance)
        both = nearest + second
        border = (labels == 0) & (both <= reach)
        weights = np.zeros(labels.shape, dtype=np.float32)
        weights[border] = self.w0 * np.exp(-(both[border] ** 2) / (2 * self.sigma**2))
        return weights


Window = tuple[slice, slice]
"""Rows and columns of a map."""


def cells(labels: np.ndarray, *, margin: int) -> Iterator[tuple[Window, np.ndarray]]:
    """The 8-connected regions of each class of a semantic map but 0: a window wider by ``margin``, and its pixels of the cell."""
    for value in np.unique(labels):
        if value in (0, IGNORE_INDEX):
            continue
        count, numbers, boxes, _ = cv2.connectedComponentsWithStats((labels == value).astype(np.uint8), connectivity=8)
        for number in range(1, count):
            x, y, width, height = boxes[number, :4].tolist()
            rows = slice(max(0, y - margin), y + height + margin)
            columns = slice(max(0, x - margin), x + width + margin)
            yield (rows, columns), numbers[rows, columns] == number
