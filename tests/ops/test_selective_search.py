"""Selective Search against slow and plain implementations of its parts, and numbers worked out by hand."""

import itertools

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage.segmentation import felzenszwalb

from quadrat.ops.selective_search import (
    COLOUR_SPACES,
    VERSIONS,
    Regions,
    compiled,
    group,
    measure,
    segment,
    selective_search,
    sorted_edges,
    texture_codes,
)


def photo(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    """Smooth coloured patches under noise."""
    draw = np.random.default_rng(seed)
    patches = cv2.resize(draw.integers(0, 255, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(patches + draw.normal(0, 6, patches.shape), 0, 255).astype(np.uint8)


def two_flat(height: int = 40, width: int = 60, split: int = 20) -> np.ndarray:
    """Blue up to the column ``split``, orange after it."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :split], image[:, split:] = (10, 20, 200), (250, 140, 10)
    return image


def regions_of(image: np.ndarray, scale: int) -> tuple[np.ndarray, Regions]:
    labels = segment(sorted_edges(image), scale, scale, image.shape[:2])
    return labels, measure(labels, image, texture_codes(image))


# The segmentation


def test_segment_separates_flat_colours() -> None:
    labels = segment(sorted_edges(two_flat()), 100, 50, (40, 60))
    assert np.array_equal(labels, np.repeat([[0] * 20 + [1] * 40], 40, axis=0))


def test_segment_leaves_no_region_below_the_least_size() -> None:
    assert not segment(sorted_edges(two_flat()), 100, 801, (40, 60)).any()  # the blue one has 800 pixels
    labels = segment(sorted_edges(photo(0)), 20, 90, (60, 80))
    assert labels.max() > 2
    assert np.bincount(labels.ravel()).min() >= 90


@pytest.mark.parametrize("space", COLOUR_SPACES)
def test_segment_is_the_partition_of_scikit_image(space: str) -> None:
    """Up to the naming of regions; ties, which neither orders by any rule, are rare enough under noise."""
    channels = COLOUR_SPACES[space](photo(0, 120, 160))
    ours = segment(sorted_edges(channels), 60, 30, (120, 160))
    theirs = felzenszwalb(channels, scale=60, sigma=0.8, min_size=30)
    pairs = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1)
    assert pairs.shape[1] == ours.max() + 1 == theirs.max() + 1 > 9


# Colours and texture


def test_colour_spaces_of_known_colours() -> None:
    image = np.array([[[255, 0, 0], [0, 0, 255], [90, 90, 90], [0, 0, 0]]], np.uint8)
    assert COLOUR_SPACES["rgI"](image).tolist() == [[[255, 0, 76], [0, 0, 29], [85, 85, 90], [85, 85, 0]]]
    assert COLOUR_SPACES["HSV"](image)[0, 1:3].tolist() == [[171, 255, 255], [0, 0, 90]]  # 240 of 360 degrees
    assert COLOUR_SPACES["H"](image).tolist() == [[[0], [171], [0], [0]]]
    assert COLOUR_SPACES["I"](image).tolist() == [[[76], [29], [90], [0]]]
    assert COLOUR_SPACES["Lab"](image)[0, 3].tolist() == [0, 128, 128]


def test_texture_of_a_flat_picture_is_weak_everywhere() -> None:
    assert (texture_codes(np.full((5, 6, 1), 77, np.uint8)) % 10 == 0).all()


def test_texture_of_a_step_by_hand() -> None:
    """Brighter to the right: full strength at 0 degrees, cos 45 of it along both diagonals, nothing across."""
    step = np.zeros((9, 20, 1), np.uint8)
    step[:, 10:] = 200
    assert texture_codes(step)[4, 9].tolist() == [9, 10 + 7, 20, 70 + 7]
    assert texture_codes(255 - step)[4, 9].tolist() == [40 + 9, 50 + 7, 20, 30 + 7]


# What is known of the regions


def test_measure_by_hand() -> None:
    """An L of 5 pixels around a square of 4; values 0 and 255, and 128 in bin 12."""
    labels = np.array([[0, 0, 0], [0, 1, 1], [0, 1, 1]], np.int32)
    channels = np.where(labels == 0, 0, 255).astype(np.uint8)[..., None]
    channels[0, 2] = 128
    codes = np.zeros((3, 3, 4), np.uint8)
    codes[:] = [0, 10, 20, 30]
    codes[1, 1] = [43, 10, 20, 30]  # the opposite direction of the first pair
    regions = measure(labels, channels, codes)
    assert regions.sizes.tolist() == [5, 4]
    assert regions.boxes.tolist() == [[0, 0, 3, 3], [1, 1, 3, 3]]
    assert regions.pairs.tolist() == [[0, 1]]
    assert regions.colours.shape == (2, 25)
    np.testing.assert_allclose(regions.colours[0, [0, 12]], [4 / 5, 1 / 5])
    np.testing.assert_allclose(regions.colours[1, 24], 1)
    assert regions.textures.shape == (2, 80)
    np.testing.assert_allclose(regions.textures[1, [0, 40, 43]], [4 / 32, 3 / 32, 1 / 32])
    np.testing.assert_allclose(regions.textures.sum(1), 1, rtol=1e-6)


def test_regions_that_touch_at_a_corner_are_neighbours() -> None:
    labels = np.array([[0, 1], [2, 3]], np.int32)
    pairs = measure(labels, np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2, 4), np.uint8)).pairs
    assert pairs.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]


# The grouping


def row_of(sizes: list[int], colours: list[list[float]]) -> Regions:
    """Regions side by side in a picture one pixel high, each touching the next."""
    ends = np.cumsum(sizes)
    boxes = [[end - size, 0, end, 1] for end, size in zip(ends, sizes, strict=True)]
    pairs = [[i, i + 1] for i in range(len(sizes) - 1)]
    flat = np.full((len(sizes), 80), 1 / 80, np.float32)
    return Regions(np.array(sizes), np.array(boxes, np.int32), np.array(colours, np.float32), flat, np.array(pairs))


@pytest.mark.parametrize(
    ("letters", "first"),
    [
        ("C", [6, 0, 16, 1]),  # alike in colour: 0.8 against 0.3 and 0.2
        ("S", [0, 0, 6, 1]),  # the smallest two
        ("F", [0, 0, 6, 1]),  # all fill their box: the first
        ("CS", [0, 0, 6, 1]),  # 0.3 + 1 - 6 / 19 against 0.8 + 1 - 10 / 19 - 0.3
    ],
)
def test_the_likest_neighbours_merge_first(letters: str, first: list[int]) -> None:
    colour = [[1.0, 0.0], [0.3, 0.7], [0.5, 0.5] if letters == "CS" else [0.1, 0.9], [0.9, 0.1]]
    boxes = group(row_of([4, 2, 10, 3], colour), letters, 19)
    assert boxes[:4].tolist() == [[0, 0, 4, 1], [4, 0, 6, 1], [6, 0, 16, 1], [16, 0, 19, 1]]
    assert boxes.shape == (7, 4)
    assert boxes[6].tolist() == [0, 0, 19, 1]


def plain_grouping(labels: np.ndarray, image: np.ndarray, letters: str) -> list[list[int]]:
    """The paper's algorithm 1 on masks: the histograms of every region are counted from its pixels."""
    regions = [PlainRegion(labels == label, image) for label in range(labels.max() + 1)]
    alive = set(range(len(regions)))
    known: dict[tuple[int, int], float] = {}
    while len(alive) > 1:
        for a, b in itertools.combinations(sorted(alive), 2):
            if (a, b) not in known and (regions[a].wider & regions[b].mask).any():
                known[a, b] = plain_similarity(regions[a], regions[b], letters)
        a, b = max((pair for pair in known if alive.issuperset(pair)), key=known.__getitem__)
        alive = alive - {a, b} | {len(regions)}
        regions.append(PlainRegion(regions[a].mask | regions[b].mask, image))
    return [plain_box(region.mask) for region in regions]


class PlainRegion:
    """The mask of a region, the mask with its neighbours, and its histograms."""

    def __init__(self, mask: np.ndarray, image: np.ndarray) -> None:
        self.mask, self.wider = mask, ndimage.binary_dilation(mask, np.ones((3, 3)))
        self.colours = histograms(image[mask].T, 25, 256)
        self.textures = histograms(np.concatenate(plain_slopes(image)[:, mask].transpose(0, 2, 1)), 10, 1)


def histograms(values: np.ndarray, bins: int, end: float) -> np.ndarray:
    """Of rows of values in 0..``end``, one after the other, all together 1."""
    return np.concatenate([np.histogram(row, bins, (0, end))[0] for row in values]) / values.size


def plain_slopes(image: np.ndarray) -> np.ndarray:
    """(8, H, W, D) in 0..1: Gaussian derivatives, where they are positive, as shares of the channel's strongest."""
    pixels = image.astype(float)
    across = ndimage.gaussian_filter(pixels, (1, 1, 0), order=(0, 1, 0))
    down = ndimage.gaussian_filter(pixels, (1, 1, 0), order=(1, 0, 0))
    angles = np.arange(8) * np.pi / 4
    slopes = np.stack([np.cos(angle) * across + np.sin(angle) * down for angle in angles]).clip(0)
    return slopes / slopes.max((0, 1, 2))


def plain_similarity(a: PlainRegion, b: PlainRegion, letters: str) -> float:
    left, top, right, bottom = plain_box(a.mask | b.mask)
    both, area = (a.mask | b.mask).sum(), a.mask.size
    terms = {
        "C": np.minimum(a.colours, b.colours).sum(),
        "T": np.minimum(a.textures, b.textures).sum(),
        "S": 1 - both / area,
        "F": 1 - ((right - left) * (bottom - top) - both) / area,
    }
    return float(sum(terms[letter] for letter in letters))


def plain_box(mask: np.ndarray) -> list[int]:
    y, x = np.nonzero(mask)
    return [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]


@pytest.mark.parametrize("letters", ["CTSF", "TSF", "F", "S", "C", "T"])
def test_grouping_as_a_plain_implementation_does(letters: str) -> None:
    image = photo(3, 45, 60)
    labels, regions = regions_of(image, 40)
    assert len(regions.sizes) > 9
    assert group(regions, letters, labels.size).tolist() == plain_grouping(labels, image, letters)


# The whole


def test_a_picture_of_one_colour_is_one_box() -> None:
    assert selective_search(np.full((30, 40, 3), 90, np.uint8), VERSIONS["fast"], 0).tolist() == [[0, 0, 40, 30]]


def test_a_picture_of_one_pixel_is_one_box() -> None:
    assert selective_search(np.zeros((1, 1, 3), np.uint8), VERSIONS["quality"], 0).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("version", VERSIONS)
def test_two_flat_rectangles_are_three_boxes(version: str) -> None:
    boxes = selective_search(two_flat(), VERSIONS[version], 0)
    assert sorted(boxes.tolist()) == [[0, 0, 20, 40], [0, 0, 60, 40], [20, 0, 60, 40]]


def test_versions_are_those_of_the_paper() -> None:
    strategies = {name: len(v.colours) * len(v.similarities) * len(v.scales) for name, v in VERSIONS.items()}
    assert strategies == {"single": 1, "fast": 8, "quality": 80}


def test_boxes_are_ordered_by_random_times_position() -> None:
    """Worked out from the hierarchy: positions count down to 1, the whole picture."""
    image = photo(1)
    channels = COLOUR_SPACES["HSV"](image)
    boxes = group(regions_of(channels, 100)[1], "CTSF", channels.shape[0] * channels.shape[1])
    values = np.random.default_rng(7).random(len(boxes)) * np.arange(len(boxes), 0, -1)
    best = {}
    for value, box in sorted(zip(values, map(tuple, boxes.tolist()), strict=True)):
        best.setdefault(box, value)
    assert list(map(tuple, selective_search(image, VERSIONS["single"], 7).tolist())) == list(best)
    assert len(best) > 5


def test_same_picture_same_boxes_whatever_the_global_state() -> None:
    first = selective_search(photo(2), VERSIONS["fast"], 0)
    np.random.seed(5)
    again = selective_search(photo(2), VERSIONS["fast"], 0)
    other = selective_search(photo(2), VERSIONS["fast"], 1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert {*map(tuple, first)} == {*map(tuple, other)}


def test_compiles_where_nothing_can_be_kept() -> None:
    """As in a read-only installation under a read-only home: numba finds no place for a function of no file."""
    made: dict = {}
    exec("def double(x):\n    return 2 * x", made)
    assert compiled(made["double"])(3) == 6
