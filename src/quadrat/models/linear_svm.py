"""One linear SVM for each class, taught with the negatives that are hard for it (R-CNN, section 2.3).

Settings and order of events are those of the released code (rcnn_train.m); the solver is liblinear's, by scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

NEVER = -1e6
"""The margin of a class that nothing is known of: below all others, and finite."""


class Examples(NamedTuple):
    """The regions of one picture: ``hidden`` (R, D) features, ``labels`` (R,) 1..C of a row that is an object and 0 of one
    that was proposed, ``overlaps`` (R, C) the largest IoU with an object of each class."""

    hidden: np.ndarray
    labels: np.ndarray
    overlaps: np.ndarray


class Planes(NamedTuple):
    """Margins are ``features @ weight.T + bias``: ``weight`` (C, D) and ``bias`` (C,) float32."""

    weight: np.ndarray
    bias: np.ndarray


class LinearSVMs(nn.Module):
    """Margins (N, C) of features (N, D), at first all of them `NEVER`; they are buffers, filled from what `fit` returns.

    L2-regularised hinge loss with ``cost`` for a negative and ``positive_weight`` times that for a positive, on features scaled
    to a mean length of ``norm`` beside a constant one of ``bias_feature``. Positives are the objects themselves; negatives the
    regions whose IoU with every object of the class is below ``negative_iou``, of which those count that score above ``hard``;
    after each training those below ``easy`` are let go. A class is trained again when more than ``retrain_after`` have come.
    What scores below ``threshold`` is no detection.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        cost: float = 1e-3,
        positive_weight: float = 2.0,
        bias_feature: float = 10.0,
        norm: float = 20.0,
        negative_iou: float = 0.3,
        hard: float = -1.0001,
        easy: float = -1.2,
        retrain_after: int = 2000,
        threshold: float = -1000.0,
    ) -> None:
        super().__init__()
        if easy > hard:
            raise ValueError(f"a negative that is hard is not let go: easy={easy} must not be above hard={hard}")
        self.cost, self.positive_weight, self.bias_feature, self.norm = cost, positive_weight, bias_feature, norm
        self.negative_iou, self.hard, self.easy, self.retrain_after = negative_iou, hard, easy, retrain_after
        self.threshold = threshold
        self.register_buffer("weight", torch.zeros(num_classes, width))
        self.register_buffer("bias", torch.full((num_classes,), NEVER))

    def forward(self, hidden: Tensor) -> Tensor:
        """Margins (N, C) of features (N, D), in single precision whatever the rest is computed in."""
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.float(), self.weight, self.bias)

    def fit(self, pictures: Sequence[Examples], classes: Sequence[int]) -> Planes:
        """Planes for some ``classes`` (numbers from 0), one after the other in ``weight`` and ``bias``.

        The pictures are gone through twice: for the objects and the mean length, then once for negatives. A class takes all
        negatives of the first picture that has any, and is trained; of every later picture it takes the hard ones. In the
        end it is trained once more if any are new. A class without an object, or without a negative, always scores `NEVER`.
        """
        scale, positives = self._objects(pictures, classes)
        learners = [_Learner(self, rows, scale) for rows in positives]
        for picture in tqdm(pictures, "hard negatives", unit="picture", delay=2, leave=False):
            weight = np.zeros(
                self.weight.shape, np.float32
            )  # one product for all: alike however many classes are asked for
            weight[list(classes)] = _planes(learners).weight
            margins = np.asarray(picture.hidden, np.float32) @ weight.T
            for learner, number in zip(learners, classes, strict=True):
                negative = picture.overlaps[:, number] < self.negative_iou
                learner.see(picture.hidden, margins[:, number] + learner.bias, negative)
        for learner in learners:
            learner.end()
        return _planes(learners)

    def _objects(self, pictures: Sequence[Examples], classes: Sequence[int]) -> tuple[float, list[np.ndarray]]:
        """The factor that brings features to their mean length, and the objects (N, D) of each class."""
        length, count = 0.0, 0
        found: list[list[np.ndarray]] = [[np.zeros((0, self.weight.shape[1]), np.float32)] for _ in classes]
        for picture in tqdm(pictures, "objects of all classes", unit="picture", delay=2, leave=False):
            length += float(np.linalg.norm(np.asarray(picture.hidden, np.float32), axis=1).sum(dtype=np.float64))
            count += len(picture.hidden)
            for rows, number in zip(found, classes, strict=True):
                rows.append(picture.hidden[picture.labels == number + 1])
        return scale_to(self.norm, length, count), [np.concatenate(rows) for rows in found]


def scale_to(norm: float, length: float, count: int) -> float:
    """The factor by which ``count`` features of a total ``length`` get a mean length of ``norm``; 1 where all are 0."""
    return norm * count / length if length > 0 else 1.0


def _planes(learners: Sequence[_Learner]) -> Planes:
    return Planes(np.stack([one.weight for one in learners]), np.array([one.bias for one in learners]))


class _Learner:
    """One class while it is learned: its positives, the negatives that it keeps, and how many of them are new."""

    def __init__(self, settings: LinearSVMs, positives: np.ndarray, scale: float) -> None:
        self.settings, self.positives, self.scale = settings, positives, scale
        self.negatives: list[np.ndarray] = []
        self.weight, self.bias = np.zeros(positives.shape[1], np.float32), np.float32(NEVER)
        self.new, self.trained = 0, False

    def see(self, hidden: np.ndarray, margins: np.ndarray, negative: np.ndarray) -> None:
        """Take the hard negatives of a picture (all of them before the first training), and train when there are enough.

        Each picture is seen once, so none can come twice.
        """
        if not len(self.positives):
            return
        chosen = negative & (margins > self.settings.hard) if self.trained else negative
        self.negatives.append(hidden[chosen])
        self.new += int(chosen.sum())
        if self.new and (not self.trained or self.new > self.settings.retrain_after):
            self._train()

    def end(self) -> None:
        """Train with what has come since the last time."""
        if self.new:
            self._train()

    def _train(self) -> None:
        settings, count = self.settings, len(self.positives)
        negatives = np.concatenate(self.negatives)
        rows = np.concatenate([self.positives, negatives]).astype(np.float64) * self.scale
        signs = np.repeat([1, -1], [count, len(negatives)])
        svm = LinearSVC(
            C=settings.cost,
            loss="hinge",
            dual=True,  # pyright: ignore[reportArgumentType]
            class_weight={1: settings.positive_weight},
            intercept_scaling=settings.bias_feature,  # pyright: ignore[reportArgumentType]
            max_iter=10_000,
            random_state=0,  # the order in which the solver goes through the rows
        ).fit(rows, signs)
        self.negatives = [negatives[svm.decision_function(rows)[count:] >= settings.easy]]
        self.weight = (svm.coef_[0] * self.scale).astype(np.float32)
        self.bias = np.float32(np.ravel(svm.intercept_)[0])
        self.new, self.trained = 0, True
