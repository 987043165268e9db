# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Regions: from every window to those that are worth a look
#
# With many objects in a picture nobody knows how many vectors to read. The way out is to ask the one-object question often: of
# every window, of some regions, at last of regions that the network itself proposes. What changes on the way from the sliding
# window to Faster R-CNN and R-FCN is where regions come from, how a region becomes a feature, and how often the trunk runs.
# Letters: B images, R regions, C classes, D channels.

# %%
import math
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch

from quadrat.backbones.pixels import Pixels
from quadrat.configs import build, compose
from quadrat.data.shapes import Shapes
from quadrat.heads.region_pool import WarpedCNN
from quadrat.heads.regions import TrainingRegions
from quadrat.metrics.proposals import ProposalScores
from quadrat.ops.boxes import iou
from quadrat.ops.rois import cells_inside, ps_roi_pool, pyramid_pool, roi_align, roi_pool
from quadrat.ops.selective_search import hsv, segment, sorted_edges
from quadrat.ops.window_grid import all_boxes
from quadrat.plots.draw import draw_detections, draw_targets
from quadrat.plots.proposals import draw_overlap_by_number, draw_recall_by_number
from quadrat.proposers.selective_search import SelectiveSearch
from quadrat.proposers.sliding_windows import SlidingWindows
from quadrat.structures import Batch, Detections, Schema

torch.manual_seed(0)
folder = TemporaryDirectory()  # what a finder finds is kept on disk: `paths.proposals`
common = ["experiment=none", "data=shapes", f"paths.proposals={folder.name}", "model/backbone=tiny"]
common += ["data.source.count={train: 8, val: 1, test: 1}", "++data.source.size=[192,256]", "data.source.objects=[2,5]"]
common += ["data.proposals.finder={mode: fast, width: null, min_side: 8}"]  # small pictures as they are
common += ["model.layers.hidden=128"]
config = compose("train", [*common, "model=fast_rcnn"])  # it asks for regions of Selective Search
data = build(config.data)
samples = [data.source("train")[index] for index in range(8)]
schema = data.schema
print(f"{len(samples)} pictures,", sum(len(sample.targets) for sample in samples), "objects of", schema.classes)

# %% [markdown]
# ## How many windows are there?
#
# Two of the W + 1 vertical lines between pixels are the sides of a box, and two of the H + 1 horizontal ones:
# $\binom{W + 1}{2} \binom{H + 1}{2} = \frac{W (W + 1)}{2} \cdot \frac{H (H + 1)}{2}$. A sliding window takes a grid of them, at a
# few sizes and shapes. Selective Search takes those round something.

# %%
height, width = 375, 500
everything, grid = all_boxes((height, width)), SlidingWindows()
assert everything == math.comb(width + 1, 2) * math.comb(height + 1, 2)
large = Shapes("notebook", count=1, size=(height, width), objects=(4, 4), empty=0.0)[0].image
search = SelectiveSearch()
search(large[:64, :64])  # compiles its loops, where that has not been done on this machine
start = time.perf_counter()
regions = search(large)
seconds = time.perf_counter() - start
assert len(grid(large)) == grid.count((height, width))
assert len(regions) < grid.count((height, width)) < everything / 1e6
print(f"all boxes of {width} x {height} pixels  {everything:>14,}")
print(f"a grid of sliding windows      {grid.count((height, width)):>14,}   {grid}")
print(f"selective search               {len(regions):>14,}   in {seconds:.2f} s")
print(f"all of them, a millisecond each: {everything / 1000 / 86400:.0f} days a picture")

# %% [markdown]
# A photo has many more of them than a drawing: about 2000.
#
# ## Selective Search at work
#
# It begins with a segmentation that is too fine and merges the two neighbours that are most alike, again and again, until one
# region is left. The box of every region that ever was is a proposal: small ones from the start, large ones from the end.

# %%
sample = samples[0]
parts = segment(sorted_edges(hsv(sample.image)), 100, 100, sample.image.shape[:2])
proposals, truth = sample.targets.proposals, sample.targets.boxes
overlaps = iou(proposals, truth)  # (P, M)
best = overlaps.argmax(dim=0)
assert (proposals[:, 2:] - proposals[:, :2] >= 8).all()
print(f"{int(parts.max()) + 1} regions at the start of one of 8 hierarchies, {len(proposals)} boxes of all of them")
for row, label, object_ in zip(best.tolist(), sample.targets.labels.tolist(), range(len(truth)), strict=True):
    print(f"{schema.name(label):<9} best IoU {overlaps[row, object_]:.2f}, by proposal {row + 1}")


def boxed(rows: torch.Tensor) -> np.ndarray:
    """The picture with some of its proposals, each with its best IoU."""
    labels = torch.ones_like(rows)  # all of one class, `IoU`
    found = Detections(proposals[rows], overlaps[rows].amax(dim=1), labels, sample.targets.size)
    return draw_detections(sample.image, found, Schema(("IoU",)), threshold=0, zoom=2)


colours = np.random.default_rng(0).integers(0, 255, (int(parts.max()) + 1, 3))
pictures = {
    "truth": draw_targets(sample.image, sample.targets, schema, zoom=2),
    "the segmentation it begins from": colours[parts],
    "its first 12 boxes": boxed(torch.arange(12)),
    "the best box of each object": boxed(best),
}
figure, axes = plt.subplots(2, 2, figsize=(10, 8))
for axis, (title, picture) in zip(axes.flat, pictures.items(), strict=True):
    axis.imshow(picture)
    axis.set_title(title)
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# Proposals are judged without a detector: what is not proposed cannot be found. Recall is the share of objects that one of the
# first so many proposals overlaps by 0.5, MABO the mean of the best overlaps, class by class. The order of Selective Search is
# nearly random, that of the grids is from large to small. (On drawings, whose edges are clean, it looks better than on photos.)

# %%
finders = {
    "selective search": None,  # those that came with the pictures
    "grid": grid,
    "finer grid": SlidingWindows(scales=(1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12), stride=0.125),
}
judged = {}
for name, finder in finders.items():
    metric = judged[name] = ProposalScores(schema.classes, numbers=(10, 30, 100, 300, 1000))
    for one in samples:
        boxes = one.targets.proposals if finder is None else torch.from_numpy(finder(one.image))
        metric.update([boxes], [one.targets])
    scores = metric.compute()
    print(
        f"{name:<17} {scores['proposals']:7.0f} regions   recall {scores['recall50@all']:.3f}   MABO {scores['mabo@all']:.3f}"
        f"   of the first 100: {scores['recall50@100']:.3f}, {scores['mabo@100']:.3f}"
    )
first, whole, finer = (metric.compute() for metric in judged.values())
assert first["recall50@300"] > whole["recall50@all"]
assert first["mabo@300"] > whole["mabo@all"]
assert first["mabo@all"] > finer["mabo@all"]  # with a hundredth of the regions
assert 100 * first["proposals"] < finer["proposals"]
curves = {name: metric.curves() for name, metric in judged.items()}
figure, axes = plt.subplots(2, 1, figsize=(10, 9))
axes[0].imshow(draw_recall_by_number({name: (curve.numbers, curve.recall) for name, curve in curves.items()}))
overlap = [{name: (curve.numbers, getattr(curve, what)) for name, curve in curves.items()} for what in ("mabo", "ar")]
axes[1].imshow(draw_overlap_by_number(*overlap))
for axis in axes:
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Four ways to make a region a feature
#
# Regions have all sizes and shapes, a layer of numbers has one. **Warp** the pixels (R-CNN): everything becomes a square, with
# some context around it; the trunk runs afterwards, once a region. Here the "trunk" hands on the pixels themselves.

# %%
image = torch.from_numpy(sample.image).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
warp, exact = (WarpedCNN(Pixels(), size=96, context=context, bins=96) for context in (12, 0))
objects = truth[None]  # (1, R, 4)
crops = warp({"image": image}, objects)
assert crops.shape == (len(truth), 3, 96, 96)
corner = torch.tensor([[[40.0, 50.0, 136.0, 146.0]]])  # a region of that very size is not changed at all
assert torch.allclose(exact({"image": image}, corner)[0], image[0, :, 50:146, 40:136], atol=1e-3)
figure, axes = plt.subplots(2, len(truth), figsize=(10, 5), squeeze=False)
for column, (label, box) in enumerate(zip(sample.targets.labels.tolist(), truth.round().int().tolist(), strict=True)):
    axes[0, column].imshow(sample.image[box[1] : box[3], box[0] : box[2]])
    axes[0, column].set_title(f"{schema.name(label)}: {box[2] - box[0]} x {box[3] - box[1]}")
    axes[1, column].imshow(crops[column].permute(1, 2, 0).clamp(0, 255).byte())
    axes[1, column].set_title("warped, with context")
for axis in axes.flat:
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# The other three run the trunk once for the picture and read its map. This map is made by hand: the value of a cell is its row
# and its column, so that a pooled number says which cell it came from. A cell stands for 16 pixels.

# %%
stride = 16
here = torch.arange(8.0)
plane = (10 * here[:, None] + here)[None, None]  # (1, 1, 8, 8)
level = torch.zeros(1, 1, dtype=torch.long)  # the region is read from map 0


def box_of(*sides: float) -> torch.Tensor:
    """One region (1, 1, 4)."""
    return torch.tensor([[sides]], dtype=torch.float32)


def pyramid(box: torch.Tensor, *cells: int) -> torch.Tensor:
    return pyramid_pool([plane], [stride], box, level, bins=cells)


def pool(box: torch.Tensor, bins: int) -> torch.Tensor:
    return roi_pool([plane], [stride], box, level, bins=bins)


def align(box: torch.Tensor, bins: int) -> torch.Tensor:
    return roi_align([plane], [stride], box, level, bins=bins, samples=2, aligned=True)


region = box_of(26, 26, 70, 102)
print(plane[0, 0].int().numpy())
print("the region, in cells  ", (region[0, 0] / stride).tolist())
print("first and last inside ", cells_inside(region, stride)[0, 0].tolist())

# %% [markdown]
# **The spatial pyramid** (SPPNet) takes the largest value in 1x1, 2x2, 3x3 .. cells of the region: many grids, one long vector.
# **RoIPool** (Fast R-CNN) is one of its levels. **RoIAlign** (Mask R-CNN) does not round: it reads between the cells.

# %%
print("pyramid 1x1, 2x2, 3x3 ", pyramid(region, 1, 2, 3)[0].int().tolist())
print("RoIPool 2x2           ", pool(region, 2)[0, 0].int().tolist())
print("RoIAlign 2x2          ", align(region, 2)[0, 0].tolist())
assert pyramid(region, 6, 3, 2, 1).shape == (1, 50)
assert pool(region, 7).shape == align(region, 7).shape == (1, 1, 7, 7)
assert pool(region, 1).item() == pyramid(region, 1).item() == 64  # of columns 2..4 and rows 2..6 the last ones
for bins in (1, 2, 3):  # the sides of this region are rounded alike
    assert torch.equal(pool(region, bins).flatten(), pyramid(region, bins).flatten())
middle = (region[0, 0, :2] + region[0, 0, 2:]) / 2 / stride - 0.5  # x, y in cells, whose centres are at halves
assert math.isclose(align(region, 1).item(), 10 * middle[1] + middle[0], abs_tol=1e-4)  # the map is a plane

# %% [markdown]
# On a region of whole cells they part ways: RoIPool takes one more at the end, as its released code does; the pyramid takes those
# whose centres lie inside, and for SPPNet the centre of cell k is pixel 16 k. RoIAlign has nothing to decide.

# %%
between = box_of(32, 32, 64, 96)  # columns 2 and 3, rows 2..5
assert (pyramid(between, 1).item(), pool(between, 1).item()) == (53, 64)
assert math.isclose(align(between, 1).item(), 10 * 3.5 + 2.5, abs_tol=1e-4)

# %% [markdown]
# What rounding costs is seen when the region moves, a pixel a step: RoIPool hears nothing for a whole cell and then of all of it
# at once. A box that is off by a part of a cell cannot be told from the right one; RoIAlign tells them apart.

# %%
steps = torch.arange(33)
moved = [region + step * torch.tensor([1.0, 0.0, 1.0, 0.0]) for step in steps.tolist()]
read = {
    name: torch.stack([way(box, 1).flatten()[0] for box in moved])
    for name, way in (("RoIPool", pool), ("RoIAlign", align))
}
assert torch.allclose(read["RoIAlign"].diff(), torch.tensor(1 / stride), atol=1e-4)  # a sixteenth of a cell a pixel
assert sorted(read["RoIPool"].diff().tolist()) == [0.0] * 30 + [1.0] * 2
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(1, 1.6))
left.imshow(plane[0, 0], cmap="gray")
ways = {"RoIPool": (2, 2, 5, 7), "pyramid": (3, 3, 4, 6), "the region": (2, 2, 4, 6)}  # in cells
for (name, (x1, y1, x2, y2)), colour in zip(ways.items(), ("tab:blue", "tab:green", "tab:red"), strict=True):
    style = {"edgecolor": colour, "linewidth": 3, "linestyle": "--" if name == "the region" else "-", "label": name}
    left.add_patch(plt.Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, **style))
left.legend(loc="upper left", bbox_to_anchor=(1, 1))
left.set_title("whole cells, and what is read")
for name, values in read.items():
    right.plot(steps, values - values[0], ".-", label=name)
right.set(xlabel="pixels that the region has moved", ylabel="change of the feature, in cells")
right.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Maps that know where in an object they are
#
# R-FCN has nothing to compute for a region: it pools and votes. For this to work a score must know *where* in the region it is,
# or half an object would score like a whole one. So each class has 3x3 maps, one for the top left of such objects, one for the
# top middle ..; cell (i, j) of a region reads the map of that part only, and the nine vote by their mean. Here the maps of a
# perfect network, drawn by hand: 1 where the object has that part (figures 3 and 4 of the paper).

# %%
place, side = (3, 2), 12  # in cells: the object's corner (x, y) and its side, three parts of four cells
planes = torch.zeros(1, 9, 16, 28)
for number in range(9):
    row, column = divmod(number, 3)
    x, y = place[0] + 4 * column, place[1] + 4 * row
    planes[0, number, y : y + 4, x : x + 4] = 1
whole_object = planes.sum(dim=1, keepdim=True)  # one map for the whole object, as a classifier of pixels has it
fits = torch.tensor([place[0], place[1], place[0] + side, place[1] + side], dtype=torch.float32)


def votes(shift: float) -> tuple[torch.Tensor, float]:
    """The cells (3, 3) of the region that is so far to the right of the object, and the mean over it of the plain map."""
    box = (fits + shift * torch.tensor([1.0, 0.0, 1.0, 0.0]))[None, None]
    return ps_roi_pool(planes, 1, box, bins=3)[0, 0], ps_roi_pool(whole_object, 1, box, bins=1).item()


shifts = range(side + 1)
sensitive, ordinary = zip(*((cells.mean().item(), mean) for cells, mean in map(votes, shifts)), strict=True)
print("the region fits       ", votes(0)[0].tolist())
print("shifted by half a part", votes(2)[0].tolist())
print("shifted by a part     ", votes(4)[0].tolist(), f"where one map for the whole object says {votes(4)[1]:.2f}")
assert np.allclose(sensitive, [max(0, 1 - shift / 4) for shift in shifts])
assert np.allclose(ordinary, [1 - shift / 12 for shift in shifts])

# %%
figure = plt.figure(figsize=(12, 4))
for number in range(9):
    axis = figure.add_subplot(3, 6, 6 * (number // 3) + number % 3 + 1)
    axis.imshow(planes[0, number], cmap="gray")
    for shift, colour in ((0, "tab:green"), (4, "tab:red")):
        x, y = place[0] + shift - 0.5, place[1] - 0.5
        axis.add_patch(plt.Rectangle((x, y), side, side, fill=False, edgecolor=colour))
        part = (x + 4 * (number % 3), y + 4 * (number // 3))
        axis.add_patch(plt.Rectangle(part, 4, 4, color=colour, alpha=0.6))
    axis.set(xticks=[], yticks=[])
axis = figure.add_subplot(1, 2, 2)
axis.plot(shifts, sensitive, ".-", label="3x3 position-sensitive maps")
axis.plot(shifts, ordinary, ".-", label="one map for the whole object")
axis.set(xlabel="shift of the region, in cells; a part has 4", ylabel="vote")
axis.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# Green: the region that fits reads each part from its own map, and the vote is 1. Red: shifted by one part, it reads every part
# where that part is not, and the vote is 0, though two thirds of the region are object.
#
# ## How often does the trunk run?
#
# Three detectors on the same trunk and the same picture, counted by a hook on the trunk's first stage. Fast R-CNN becomes Faster
# R-CNN by another proposer.

# %%
fast = [*common, "model=fast_rcnn"]
rpn = ["model/proposer=rpn_c4", "model.proposer.anchors.scales=[1,2,4,8]"]
rpn += [f"model.proposer.test_limits=[2000,{len(proposals)}]"]  # as many regions as the others look at
warped = ["model=rcnn", "model.svm=null", "model.ridge=null"]  # the softmax alone
warped += ["model.pool.size=96", "model.pool.context=7", "model.pool.bins=3"]  # 227, at the scale of these pictures
built = {"R-CNN": [*common, *warped], "Fast R-CNN": fast, "Faster R-CNN": [*fast, *rpn]}
models = {name: build(compose("train", overrides).model, schema=schema).eval() for name, overrides in built.items()}
batch = Batch.collate(samples[:1])
search = SelectiveSearch(width=None, min_side=8)


def timed(work: Callable[[], object]) -> float:
    """Seconds of the faster of two runs: the first of anything is slow."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def look(model: torch.nn.Module) -> None:
    with torch.inference_mode():
        model.predict(model.features(batch), batch)


seen, searching = {}, timed(lambda: search(sample.image))
for name, model in models.items():
    trunk = model.box.pool.backbone if name == "R-CNN" else model.backbone
    shapes = seen[name] = []
    hook = trunk.stages["c1"].register_forward_hook(lambda stage, given, maps, to=shapes: to.append(given[0].shape))
    look(model)
    hook.remove()
    runs, size = sum(shape[0] for shape in shapes), " x ".join(map(str, shapes[0][2:]))
    before = 0 if name == "Faster R-CNN" else searching
    looking = timed(lambda model=model: look(model))
    print(f"{name:<13} {runs:>4} times, on {size:<9}  {before:.2f} s to find regions, {looking:.2f} s for all the rest")
assert sum(shape[0] for shape in seen["R-CNN"]) == len(proposals)
assert seen["Fast R-CNN"] == seen["Faster R-CNN"] == [(1, 3, 192, 256)]

# %% [markdown]
# R-CNN runs the trunk for every region. Fast R-CNN runs it once, and what is left is the search for regions. Faster R-CNN finds
# them on the map that is there already: its seconds hold both. (One picture, untrained networks: the counts are exact, the
# seconds only hint. `quadrat-bench rcnn-family` measures.)
#
# ## Two losses, and four
#
# Fast R-CNN learns what a region is and where exactly: $L = L_{class} + \lambda [u \geq 1] L_{box}$. Where the true class u is
# the background there is no box, and its term is 0; but the mean is over all regions. Before the first step the network says
# nothing: the class term is that of C + 1 equal guesses.

# %%
fast, faster = models["Fast R-CNN"].train(), models["Faster R-CNN"].train()
batch = Batch.collate(samples[:4])
torch.manual_seed(0)  # which regions are drawn
two = fast.loss(fast.features(batch), batch)
print(
    {name: round(value.item(), 3) for name, value in two.items()},
    f"log {len(schema.classes) + 1} = {math.log(len(schema.classes) + 1):.3f}",
)
assert tuple(two) == fast.loss_names == ("region_class", "region_box")
assert abs(two["region_class"].item() - math.log(len(schema.classes) + 1)) < 0.2

features = fast.features(batch)
drawn = fast.sampler(fast.proposer.propose(None, batch, 2000), batch)
nothing = TrainingRegions(
    drawn.boxes, torch.zeros_like(drawn.labels), drawn.index, torch.zeros_like(drawn.positive), drawn.valid
)
assert fast.box.loss(features, nothing, batch)["region_box"].item() == 0  # all background
print(f"{int(drawn.positive.sum())} of {int(drawn.valid.sum())} regions have a box to learn")

# %% [markdown]
# Lambda is `loss.weights.region_box`, 1 in the paper. It is not the only weight: the targets are multiplied by `box.coder`
# (10, 10, 5, 5), since they are small numbers, and so the loss is too, up to a hundredfold while it is a square.

# %%
assert config.loss.weights.region_box == 1.0
bare = build(compose("train", [*common, "model=fast_rcnn", "model.box.coder=[1,1,1,1]"]).model, schema=schema)
bare.load_state_dict(fast.state_dict())
small = bare.train().box.loss(features, drawn, batch)["region_box"].item()
usual = fast.box.loss(features, drawn, batch)["region_box"].item()
print(f"region_box with the coder {usual:.3f}, without it {small:.4f}: a hidden lambda of about {usual / small:.0f}")
assert 5 < usual / small < 100

# %% [markdown]
# The proposer of Faster R-CNN asks the same two questions of every anchor, with two classes: object or not, and where. Four
# losses in one sum, and one step on it.

# %%
optimizer = torch.optim.SGD(faster.parameters(), lr=0.01)
torch.manual_seed(0)
four = faster.loss(faster.features(batch), batch)
assert tuple(four) == ("rpn_objectness", "rpn_box", "region_class", "region_box")
assert abs(four["rpn_objectness"].item() - math.log(2)) < 0.1  # object or not: two equal guesses
assert abs(four["region_class"].item() - math.log(len(schema.classes) + 1)) < 0.2
shared = faster.backbone.stages["c1"][0].weight
for name, value in four.items():
    (pull,) = torch.autograd.grad(value, shared, retain_graph=True)
    assert pull.norm() > 0
    print(f"{name:<15} {value.item():.3f}   its pull on the trunk's first filters {pull.norm():.4f}")
total = sum(four.values())
total.backward()
optimizer.step()
torch.manual_seed(0)
after = sum(faster.loss(faster.features(batch), batch).values())
assert after < total
print(f"{'total':<15} {total.item():.3f}   after the step {after.item():.3f}")
folder.cleanup()

# %% [markdown]
# Nothing flows back through where a proposal lies: the head's terms reach the trunk through what is read there ("approximate
# joint training"). To train a detector from regions found beforehand, in minutes: `quadrat-train experiment=shapes_fast`.
