"""How must a region move to fit its object, for each class: ridge regression after training (R-CNN, appendix C).

What the appendix leaves open, the whitened targets above all, is that of the released code (rcnn_train_bbox_regressor.m).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from quadrat.models.linear_svm import scale_to
from quadrat.ops.boxes import Weights4, decode

CODER: Weights4 = (1.0, 1.0, 1.0, 1.0)
"""Moves are regressed as they are; whitening takes the place of multipliers."""

SOFTEST = 1e-3
"""What is added to the variances of the targets, so that a direction without any is not blown up."""


class Moves(NamedTuple):
    """What one picture teaches: ``pooled`` (K, P) features of the regions near an object, ``classes`` (K,) 1..C and ``deltas``
    (K, 4) of the object that is nearest to each, and ``norms`` (R,) the lengths of the pooled features of all regions."""

    pooled: np.ndarray
    classes: np.ndarray
    deltas: np.ndarray
    norms: np.ndarray


class Shift(NamedTuple):
    """Moves are ``features @ weight.T + bias`` for each class: ``weight`` (C, 4, P) and ``bias`` (C, 4) float32."""

    weight: np.ndarray
    bias: np.ndarray


class White(NamedTuple):
    """Targets less ``mean`` (4,) and times ``forward`` (4, 4) have no correlation and variances of 1; ``back`` undoes it."""

    mean: np.ndarray
    forward: np.ndarray
    back: np.ndarray


class RidgeBoxes(nn.Module):
    """Boxes (N, C, 4) from pooled features (N, P) and boxes (N, 4), which at first stay where they are; what moves them are
    buffers, filled from what `fit` returns.

    A region teaches the class of the object that it overlaps most, if by more than ``min_iou``. ``alpha`` holds back the weights
    and the bias, on features scaled to a mean length of ``norm`` beside a constant 1.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, width: int, num_classes: int, *, alpha: float = 1000.0, min_iou: float = 0.6, norm: float = 20.0
    ) -> None:
        super().__init__()
        self.alpha, self.min_iou, self.norm = alpha, min_iou, norm
        self.register_buffer("weight", torch.zeros(num_classes, 4, width))
        self.register_buffer("bias", torch.zeros(num_classes, 4))

    def forward(self, pooled: Tensor, boxes: Tensor) -> Tensor:
        """Moved boxes (N, C, 4), in single precision whatever the rest is computed in."""
        with torch.autocast(pooled.device.type, enabled=False):
            deltas = functional.linear(pooled.float(), self.weight.flatten(0, 1), self.bias.flatten())
        return decode(deltas.view(len(boxes), -1, 4), boxes.float()[:, None], CODER)

    def fit(self, pictures: Sequence[Moves], classes: Sequence[int]) -> Shift:
        """Moves for some ``classes`` (numbers from 0), one after the other; one without an example leaves boxes alone."""
        found: list[list[Moves]] = [[] for _ in classes]
        length, count = 0.0, 0
        for picture in tqdm(pictures, "regions near objects", unit="picture", delay=2, leave=False):
            length, count = length + float(picture.norms.sum(dtype=np.float64)), count + len(picture.norms)
            for examples, number in zip(found, classes, strict=True):
                own = picture.classes == number + 1
                examples.append(picture._replace(pooled=picture.pooled[own], deltas=picture.deltas[own]))
        scale = scale_to(self.norm, length, count)
        fits = [self._fit_class(examples, scale) for examples in found]
        return Shift(np.stack([fit.weight for fit in fits]), np.stack([fit.bias for fit in fits]))

    def _fit_class(self, examples: Sequence[Moves], scale: float) -> Shift:
        """``weight`` (4, P) and ``bias`` (4,) of one class, with whitening and scale worked into them."""
        width = self.weight.shape[2]
        pooled = np.concatenate([np.zeros((0, width), np.float32), *(one.pooled for one in examples)])
        deltas = np.concatenate([np.zeros((0, 4)), *(one.deltas for one in examples)])
        if not len(deltas):
            return Shift(np.zeros((4, width), np.float32), np.zeros(4, np.float32))
        white = whiten(deltas)
        rows = np.concatenate([pooled * np.float32(scale), np.ones((len(pooled), 1), np.float32)], axis=1)
        targets = ((deltas - white.mean) @ white.forward).astype(np.float32)
        ridge = Ridge(alpha=self.alpha, solver="cholesky", fit_intercept=False).fit(rows, targets)
        coefficients = white.back @ ridge.coef_.astype(np.float64)  # (4, P + 1); `back` is its own transpose
        weight, bias = coefficients[:, :-1] * scale, coefficients[:, -1] + white.mean
        return Shift(weight.astype(np.float32), bias.astype(np.float32))


def whiten(targets: np.ndarray) -> White:
    """From targets (N, 4) to uncorrelated ones and back, both by symmetric matrices: V (D + 0.001)^(-+1/2) V^T."""
    mean = targets.mean(axis=0)
    centred = targets - mean
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    deviations = np.sqrt(variances.clip(min=0) + SOFTEST)
    return White(mean, (directions / deviations) @ directions.T, (directions * deviations) @ directions.T)
