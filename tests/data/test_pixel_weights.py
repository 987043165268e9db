"""U-Net's border weights: a case by hand, every pixel against whole-picture distances, and maps without a border."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, label

from quadrat.data.pixel_weights import BorderWeights, cells
from quadrat.data.shapes import Shapes
from quadrat.structures import Targets


def brute(labels: np.ndarray, w0: float = 10, sigma: float = 5) -> np.ndarray:
    """The equation with a distance transform of the whole picture for each cell."""
    distances = []
    for value in set(np.unique(labels).tolist()) - {0, 255}:
        numbers, count = label(labels == value, np.ones((3, 3)))
        distances += [distance_transform_edt(numbers != number) for number in range(1, count + 1)]
    if len(distances) < 2:
        return np.zeros(labels.shape)
    first, second = np.sort(distances, axis=0)[:2]
    return np.where(labels == 0, w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2)), 0)


@pytest.mark.parametrize(
    "labels",
    [np.zeros((5, 7)), np.ones((5, 7)), np.full((5, 7), 255), np.eye(6), np.pad(np.ones((2, 2)), 3)],
    ids=["nothing", "only a cell", "ignored", "a cell joined at corners", "one cell"],
)
def test_fewer_than_two_cells_weigh_nothing(labels: np.ndarray):
    weights = BorderWeights().weights(labels.astype(np.uint8))
    assert weights.dtype == np.float32
    assert weights.shape == labels.shape
    assert not weights.any()


def test_a_row_by_hand():
    """Cells at 0 and at 4 to 5; between them d1 + d2 is 4, beyond them 2 to the nearer and 6 or 7 to the other."""
    row = np.array([[1, 0, 0, 0, 2, 2, 0, 0]], dtype=np.uint8)
    expected = [0, *[10 * math.exp(-16 / 50)] * 3, 0, 0, 10 * math.exp(-49 / 50), 10 * math.exp(-81 / 50)]
    np.testing.assert_allclose(BorderWeights().weights(row)[0], expected, rtol=1e-6)


def test_ignored_pixels_are_no_cell_and_weigh_nothing():
    row = np.array([[1, 0, 255, 0, 1]], dtype=np.uint8)
    both = 10 * math.exp(-16 / 50)
    np.testing.assert_allclose(BorderWeights().weights(row)[0], [0, both, 0, both, 0], rtol=1e-6)


def test_neighbours_of_different_classes_are_two_cells():
    row = np.array([[0, 1, 2, 0]], dtype=np.uint8)
    both = 10 * math.exp(-9 / 50)  # 1 + 2
    np.testing.assert_allclose(BorderWeights().weights(row)[0], [both, 0, 0, both], rtol=1e-6)


def test_peak_and_width_follow_the_arguments():
    row = np.array([[1, 0, 1]], dtype=np.uint8)
    np.testing.assert_allclose(BorderWeights(w0=3, sigma=1).weights(row)[0, 1], 3 * math.exp(-2), rtol=1e-6)
    assert not BorderWeights(w0=0).weights(row).any()


def test_every_pixel_of_scenes_equals_brute_force():
    for sample in Shapes("train", count=6, size=(96, 128), empty=0, objects=(2, 6)):
        labels = sample.targets.semantic.numpy()
        np.testing.assert_allclose(BorderWeights().weights(labels), brute(labels), atol=4e-5)
        np.testing.assert_allclose(BorderWeights(2, 9.5).weights(labels), brute(labels, 2, 9.5), atol=8e-6)


def test_every_pixel_of_crowded_discs_equals_brute_force():
    rng = np.random.default_rng(0)
    labels = np.zeros((150, 170), dtype=np.uint8)
    for _ in range(30):
        x, y, radius, value = *rng.integers(0, 170, 2).tolist(), *rng.integers((2, 1), (12, 4)).tolist()
        cv2.circle(labels, (x, y), radius, value, -1)
    labels[40:60, 40:60] = 255
    weights = BorderWeights().weights(labels)
    np.testing.assert_allclose(weights, brute(labels), atol=4e-5)
    assert weights.max() > 8


def test_cells_are_the_regions_of_each_class():
    labels = np.array([[1, 0, 2, 2], [0, 1, 2, 0], [0, 0, 0, 255], [1, 0, 0, 3]], dtype=np.uint8)
    found = [(int(labels[window][cell][0]), int(cell.sum())) for window, cell in cells(labels, margin=1)]
    assert found == [(1, 2), (1, 1), (2, 3), (3, 1)]
    ((rows, columns), cell) = list(cells(labels, margin=1))[1]
    assert (rows, columns, cell.shape) == (slice(2, 5), slice(0, 2), (2, 2))


def test_targets_get_a_map_of_weights():
    sample = Shapes("train", count=1, size=(64, 96), empty=0, objects=(3, 3))[0]
    weighed = BorderWeights()(sample.targets)
    assert weighed.pixel_weights.shape == (64, 96)
    assert weighed.pixel_weights.dtype == torch.float32
    assert weighed.semantic is sample.targets.semantic
    assert sample.targets.pixel_weights is None


def test_targets_without_a_map_are_named():
    with pytest.raises(ValueError, match="image this: no semantic map"):
        BorderWeights()(Targets.make([], [], (4, 4), "this"))


@pytest.mark.parametrize("options", [{"w0": -1}, {"sigma": 0}])
def test_bad_arguments(options: dict):
    with pytest.raises(ValueError, match="w0 of 0 or more and a sigma above 0"):
        BorderWeights(**options)
