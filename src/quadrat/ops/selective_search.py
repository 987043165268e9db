"""Selective Search (Uijlings et al., IJCV 2013): regions of a graph segmentation, grouped by likeness until one is left.

Arrays in, arrays out, one core. The loops are compiled by numba, which is slow to import: import this module where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

SIMILARITIES = "CTSF"
"""Colour, texture, size, fill: the letters of the paper's tables, in the order of our weights."""

SMOOTHING = 0.8
"""Sigma of the Gaussian before segmentation, in pixels (section 3; Felzenszwalb and Huttenlocher's own)."""

COLOUR_BINS, ORIENTATIONS, TEXTURE_BINS = 25, 8, 10
"""Bins of a channel's colour histogram; orientations and bins of its texture histogram (section 3.1.2)."""


class Version(NamedTuple):
    """One hierarchy for each colour space, each set of similarities (letters of ``SIMILARITIES``) and each scale k."""

    colours: tuple[str, ...]
    similarities: tuple[str, ...]
    scales: tuple[int, ...]


VERSIONS = {
    "single": Version(("HSV",), ("CTSF",), (100,)),
    "fast": Version(("HSV", "Lab"), ("CTSF", "TSF"), (50, 100)),
    "quality": Version(("HSV", "Lab", "rgI", "H", "I"), ("CTSF", "TSF", "F", "S"), (50, 100, 150, 300)),
}
"""Table 4 of the paper."""


class Regions(NamedTuple):
    """Regions of a segmentation: pixels (R,), boxes (R, 4), histograms (R, bins), neighbouring pairs (E, 2), lower first."""

    sizes: NDArray[np.int64]
    boxes: NDArray[np.int32]
    colours: NDArray[np.float32]
    textures: NDArray[np.float32]
    pairs: NDArray[np.int64]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on the first call, and keep the machine code on disk where any of numba's places can be written."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # read-only installation and home: compile in every process
        return numba.njit(function)


def selective_search(image: NDArray[np.uint8], version: Version, seed: int) -> NDArray[np.int32]:
    """All regions ever formed in the uint8 RGB ``image`` (H, W, 3), as boxes (P, 4), the likeliest objects first.

    Section 4.3: the i-th region from the top of its hierarchy has the value RND * i; ascending values order the boxes of all
    hierarchies, and of equal boxes the best stays.
    """
    draw = np.random.default_rng(seed)
    hierarchies = list(_hierarchies(image, version))
    positions = np.concatenate([np.arange(len(boxes), 0, -1) for boxes in hierarchies])
    boxes = np.concatenate(hierarchies)[np.argsort(draw.random(len(positions)) * positions, kind="stable")]
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)]


def _hierarchies(image: NDArray[np.uint8], version: Version) -> Iterator[NDArray[np.int32]]:
    """The boxes of each hierarchy in the order in which the regions were formed; what hierarchies share is done once."""
    for colour in version.colours:
        channels = COLOUR_SPACES[colour](image)
        edges = sorted_edges(channels)
        codes = texture_codes(channels)
        for scale in version.scales:
            regions = measure(segment(edges, scale, scale, image.shape[:2]), channels, codes)
            for letters in version.similarities:
                yield group(regions, letters, image.shape[0] * image.shape[1])


# Colour spaces: every channel in 0..255, so that one scale k means the same in all of them


def hsv(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL), np.uint8)


def lab(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.uint8)


def rgi(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Normalised red and green, and intensity; black is grey."""
    total = image.sum(-1, dtype=np.float32, keepdims=True)
    shares = np.divide(image[..., :2], total, out=np.full_like(image[..., :2], 1 / 3, np.float32), where=total > 0)
    return np.dstack([np.round(255 * shares).astype(np.uint8), intensity(image)])


def hue(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(hsv(image)[..., :1])


def intensity(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)[..., None]


COLOUR_SPACES: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "HSV": hsv,
    "Lab": lab,
    "rgI": rgi,
    "H": hue,
    "I": intensity,
}


# Graph segmentation (Felzenszwalb and Huttenlocher, IJCV 2004)


class Edges(NamedTuple):
    """Edges between neighbouring pixels, lightest first: ``weights`` (N,), and in ``ends`` (N,) 4 * pixel + direction."""

    weights: NDArray[np.float32]
    ends: NDArray[np.int32]


def sorted_edges(channels: NDArray[np.uint8]) -> Edges:
    """The edges of the 8-connected grid of the smoothed ``channels`` (H, W, D), weighted by Euclidean distance."""
    smooth = cv2.GaussianBlur(channels.astype(np.float32), (7, 7), SMOOTHING, borderType=cv2.BORDER_REFLECT)
    weights, ends = _edges(smooth.reshape(channels.shape))
    # floats that are not negative are in the order of their bits; one sort of whole numbers is several times an argsort
    keys = np.sort(weights.view(np.uint32).astype(np.uint64) << np.uint64(32) | ends)
    return Edges((keys >> np.uint64(32)).astype(np.uint32).view(np.float32), keys.astype(np.uint32).view(np.int32))


@compiled
def _edges(smooth):
    height, width, depth = smooth.shape
    weights = np.empty(4 * height * width, np.float32)
    ends = np.empty(4 * height * width, np.uint32)
    count = 0
    for y in range(height):
        for x in range(width):
            for direction in range(4):
                to_y = y + (direction > 0)
                to_x = x + (1 if direction == 0 else direction - 2)
                if to_y == height or to_x < 0 or to_x == width:
                    continue
                total = np.float32(0)
                for d in range(depth):
                    difference = smooth[y, x, d] - smooth[to_y, to_x, d]
                    total += difference * difference
                weights[count] = np.sqrt(total)
                ends[count] = 4 * (y * width + x) + direction
                count += 1
    return weights[:count], ends[:count]


def segment(edges: Edges, scale: float, min_size: int, size: tuple[int, int]) -> NDArray[np.int32]:
    """Labels (H, W) 0..R - 1 of regions: a larger ``scale`` k asks for larger ones, none is smaller than ``min_size`` pixels."""
    height, width = size
    steps = np.array([1, width - 1, width, width + 1])  # to the neighbours right, below left, below, below right
    return _segment(edges.weights, edges.ends, steps, height * width, float(scale), min_size).reshape(size)


@compiled
def _root(parents, node):
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return np.int64(node)


@compiled
def _segment(weights, ends, steps, pixels, scale, min_size):
    parents = np.arange(pixels, dtype=np.int32)
    sizes = np.ones(pixels, np.int32)
    limits = np.full(pixels, scale, np.float32)  # a region's heaviest edge + k / its size
    between = np.empty(len(weights), np.int64)  # edges that did not join their regions
    count = 0
    for edge in range(len(weights)):
        a = _root(parents, ends[edge] >> 2)
        b = _root(parents, (ends[edge] >> 2) + steps[ends[edge] & 3])
        if a == b:
            continue
        if weights[edge] <= limits[a] and weights[edge] <= limits[b]:
            parents[b] = a
            sizes[a] += sizes[b]
            limits[a] = weights[edge] + scale / sizes[a]
        else:
            between[count] = edge
            count += 1
    for edge in between[:count]:
        a = _root(parents, ends[edge] >> 2)
        b = _root(parents, (ends[edge] >> 2) + steps[ends[edge] & 3])
        if a != b and (sizes[a] < min_size or sizes[b] < min_size):
            parents[b] = a
            sizes[a] += sizes[b]
    labels = np.empty(pixels, np.int32)
    names = np.full(pixels, -1, np.int32)
    count = 0
    for pixel in range(pixels):
        root = _root(parents, pixel)
        if names[root] < 0:
            names[root] = count
            count += 1
        labels[pixel] = names[root]
    return labels


# What is known of the regions


def texture_codes(channels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of each pixel of (H, W, D) the texture bins it counts in: (H, W, 4 D), orientation * 10 + bin.

    Gaussian derivatives (sigma 1) in 8 orientations: a derivative counts where it is positive, so that of two opposite
    orientations one has a bin of strength, and the other bin 0, which is left out here. The strongest of a channel ends the
    last bin, or one level a pixel where all are weaker: a flat channel has no texture.
    """
    reach = np.arange(-4, 5)
    bell = np.exp(-(reach**2) / 2) / np.exp(-(reach**2) / 2).sum()
    codes = np.empty((*channels.shape, ORIENTATIONS // 2), np.uint8)
    for d in range(channels.shape[2]):
        channel = np.ascontiguousarray(channels[..., d], np.float32)
        across = cv2.sepFilter2D(channel, cv2.CV_32F, reach * bell, bell, borderType=cv2.BORDER_REFLECT)
        down = cv2.sepFilter2D(channel, cv2.CV_32F, bell, reach * bell, borderType=cv2.BORDER_REFLECT)
        diagonal = np.float32(np.sqrt(0.5))
        slopes = np.stack([across, (across + down) * diagonal, down, (down - across) * diagonal], -1)
        strength = np.abs(slopes)
        bins = np.minimum(strength * (TEXTURE_BINS / max(strength.max(), 1.0)), TEXTURE_BINS - 1).astype(np.uint8)
        orientation = np.arange(4, dtype=np.uint8) + np.uint8(4) * (slopes < 0)
        codes[:, :, d] = orientation * np.uint8(TEXTURE_BINS) + bins
    return codes.reshape(*channels.shape[:2], -1)


def measure(labels: NDArray[np.int32], channels: NDArray[np.uint8], codes: NDArray[np.uint8]) -> Regions:
    """Sizes, boxes, histograms (each sums to 1) and neighbours of the regions ``labels`` (H, W) 0..R - 1 of a picture."""
    count, depth = int(labels.max()) + 1, channels.shape[2]
    boxes, colours, textures = _count(labels, channels, codes, count)
    sizes = colours[:, :COLOUR_BINS].sum(1)
    oriented = textures.reshape(count, depth, ORIENTATIONS, TEXTURE_BINS)
    oriented[..., 0] += sizes[:, None, None] - oriented.sum(-1)  # pixels whose derivative points the other way
    return Regions(
        sizes,
        boxes,
        (colours / (sizes * depth)[:, None]).astype(np.float32),
        (textures / (sizes * depth * ORIENTATIONS)[:, None]).astype(np.float32),
        _neighbours(labels, count),
    )


@compiled
def _count(labels, channels, codes, count):
    height, width, depth = channels.shape
    boxes = np.zeros((count, 4), np.int32)
    boxes[:, 0], boxes[:, 1] = width, height
    colours = np.zeros((count, depth * COLOUR_BINS), np.int64)
    textures = np.zeros((count, depth * ORIENTATIONS * TEXTURE_BINS), np.int64)
    for y in range(height):
        for x in range(width):
            region = labels[y, x]
            box, colour, texture = boxes[region], colours[region], textures[region]
            box[0], box[1] = min(box[0], x), min(box[1], y)
            box[2], box[3] = max(box[2], x + 1), max(box[3], y + 1)
            for d in range(depth):
                colour[d * COLOUR_BINS + channels[y, x, d] * COLOUR_BINS // 256] += 1
            for d in range(4 * depth):
                texture[d // 4 * ORIENTATIONS * TEXTURE_BINS + codes[y, x, d]] += 1
    return boxes, colours, textures


def _neighbours(labels: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Pairs (E, 2) of regions that touch, at a corner too, as in the graph they come from; the lower first, ascending."""
    sides = (
        (labels[:, 1:], labels[:, :-1]),
        (labels[1:], labels[:-1]),
        (labels[1:, 1:], labels[:-1, :-1]),
        (labels[1:, :-1], labels[:-1, 1:]),
    )
    keys = []
    for one, other in sides:
        differ = one != other
        a, b = one[differ].astype(np.int64), other[differ].astype(np.int64)
        keys.append(np.minimum(a, b) * count + np.maximum(a, b))
    return np.stack(np.divmod(np.unique(np.concatenate(keys)), count), axis=1)


# Hierarchical grouping


def group(regions: Regions, letters: str, area: int) -> NDArray[np.int32]:
    """Boxes (2 R - 1, 4) of the R regions and of those that merging the likest neighbours forms, in this order.

    Likeness is the sum of the similarities that ``letters`` name; ``area`` is that of the picture in pixels.
    """
    used = np.array([letter in letters for letter in SIMILARITIES])
    merged = len(regions.sizes) - 1
    sizes, boxes, colours, textures = (_longer(known, merged) for known in regions[:4])
    _group(sizes, boxes, colours, textures, regions.pairs, used, area)
    return boxes


def _longer(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """``rows`` followed by room for so many more."""
    return np.concatenate([rows, np.empty((count, *rows.shape[1:]), rows.dtype)])


@compiled
def _common(one, other):
    """The intersection of two histograms."""
    total = np.float32(0)
    for i in range(len(one)):
        total += min(one[i], other[i])
    return total


@compiled
def _similarity(sizes, boxes, colours, textures, used, area, a, b):
    total = 0.0
    if used[0]:
        total += _common(colours[a], colours[b])
    if used[1]:
        total += _common(textures[a], textures[b])
    if used[2]:
        total += 1 - (sizes[a] + sizes[b]) / area
    if used[3]:
        wide = max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0])
        high = max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1])
        total += 1 - (wide * high - sizes[a] - sizes[b]) / area
    return total


@compiled
def _merge(sizes, boxes, colours, textures, a, b, new):
    """Write region ``new``, the union of ``a`` and ``b``: its histograms are their means, weighted by size."""
    sizes[new] = sizes[a] + sizes[b]
    for i in range(2):
        boxes[new, i] = min(boxes[a, i], boxes[b, i])
        boxes[new, i + 2] = max(boxes[a, i + 2], boxes[b, i + 2])
    share = np.float32(sizes[a] / sizes[new])
    for histograms in (colours, textures):
        for i in range(histograms.shape[1]):
            histograms[new, i] = share * histograms[a, i] + (1 - share) * histograms[b, i]


@compiled
def _group(sizes, boxes, colours, textures, pairs, used, area):
    """Merge the likest neighbours until one region is left; arrays have a row for each region that this will form."""
    total = len(sizes)
    # end h of the pairs lies in the chain of the region ends[h]; the other end of its pair is h ^ 1
    ends = pairs.ravel()
    first, last = np.full(total, -1), np.full(total, -1)
    following = np.full(len(ends), -1)
    for h in range(len(ends)):
        _prepend(first, last, following, ends[h], h)
    parents = np.arange(total, dtype=np.int32)
    seen = np.full(total, -1)
    heap = [(-_similarity(sizes, boxes, colours, textures, used, area, a, b), a, b) for a, b in pairs]
    heapify(heap)
    new = (total + 1) // 2
    while new < total:
        _, a, b = heappop(heap)
        if parents[a] != a or parents[b] != b:  # merged since
            continue
        _merge(sizes, boxes, colours, textures, a, b, new)
        parents[a] = parents[b] = new
        following[last[a]] = first[b]
        h = first[a]
        while h >= 0:
            after, other = following[h], _root(parents, ends[h ^ 1])
            if other != new and seen[other] != new:
                seen[other] = new
                likeness = _similarity(sizes, boxes, colours, textures, used, area, other, new)
                heappush(heap, (-likeness, other, new))
                _prepend(first, last, following, new, h)
            h = after
        new += 1


@compiled
def _prepend(first, last, following, region, end):
    """Put an end at the front of a region's chain."""
    following[end] = first[region]
    if first[region] < 0:
        last[region] = end
    first[region] = end
