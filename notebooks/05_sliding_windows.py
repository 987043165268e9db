# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Sliding windows: every pixel from the window around it
#
# The oldest way to give every pixel a class: cut out the window around it and classify its centre. It works, and the lecture
# calls it very inefficient, since neighbouring windows are nearly the same and nothing of one is used for the next. Here is how
# inefficient, why the same scores can be had in one pass, and what the first papers made of it. Letters: B images, S
# classes of pixels, H W height and width, P the side of a window, D channels.

# %%
import time

import matplotlib.pyplot as plt
import torch

from quadrat.configs import build, compose
from quadrat.data.shapes import Shapes
from quadrat.models.patches import Dilated, Loop, Natural, Stitched
from quadrat.models.superpixels import Superpixels
from quadrat.structures import Batch

torch.manual_seed(0)
source = Shapes("notebook", count=8, size=(96, 96), objects=(2, 4), empty=0.0)
batch = Batch.collate([source[index] for index in range(8)])
model = build(
    compose("train", ["experiment=none", "model=patch_segmentation", "model.samples=32"]).model, schema=source.schema
)
print(source.schema.pixel_classes)

# %% [markdown]
# ## The window of one pixel
#
# A picture is continued by its mirror image, so that the pixel in a corner has a window too.

# %%
features = model.features(batch)
surrounded, net = features["surrounded"], model.net
print("pictures  ", tuple(batch.images.shape))
print("surrounded", tuple(surrounded.shape), "by a margin of", net.margin)
shown = surrounded[0].permute(1, 2, 0)
shown = (shown - shown.amin()) / (shown.amax() - shown.amin())
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4))
axes[0].imshow(shown)
for (y, x), axis in zip([(0, 0), (48, 60)], axes[1:], strict=True):
    axes[0].add_patch(plt.Rectangle((x, y), net.size, net.size, fill=False, edgecolor="white"))
    axis.imshow(shown[y : y + net.size, x : x + net.size])
    axis.plot(net.margin, net.margin, "w+")
    _ = axis.set_title(f"the window of pixel ({y}, {x})")

# %% [markdown]
# ## What is trained on
#
# A few pixels of the batch at each step, as often as their classes are or every class alike (`Balanced`).

# %%
places = Natural()(batch.semantic, 5)
for i, y, x in zip(*(axis.tolist() for axis in places), strict=True):
    print(f"picture {i}, pixel ({y:>2}, {x:>2}): {source.schema.pixel_classes[batch.semantic[i, y, x]]}")

# %%
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for step in range(40):
    loss = model.loss(model.features(batch), batch)["pixel_class"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 9:
        print(step + 1, f"{loss.item():.3f}")

# %% [markdown]
# ## The loop and the forms without waste
#
# `Loop` cuts out one window for every pixel. `Dilated` lets every pooling step by one pixel and dilates the filters behind it by
# what the pooling would have skipped: each product is computed once for all windows that need it. `Stitched` runs the plain
# fully convolutional net once for every offset of its stride and interlaces the results. The scores are the same.

# %%
model.eval()
one = surrounded[:1]
ways = {"loop": Loop(), "dilated": Dilated(), "stitched": Stitched()}
scores, seconds = {}, {}
with torch.inference_mode():
    for name, scan in ways.items():
        scan(net, one[:, :, : net.size + 4, : net.size + 4])  # the first call of anything is slow
        start = time.perf_counter()
        scores[name] = scan(net, one)
        seconds[name] = time.perf_counter() - start
for name in ways:
    apart = (scores[name] - scores["loop"]).abs().max().item()
    print(
        f"{name:<9} {seconds[name]:7.3f} s   {seconds['loop'] / seconds[name]:5.1f} times as fast   at most {apart:.0e} apart"
    )

# %% [markdown]
# The other price is memory: the loop can go window by window, the dense form keeps a map of the picture's full size for each
# channel of a layer, where a net that downsamples keeps a quarter, a sixteenth and so on.

# %%
height, width = batch.images.shape[2:]
channels = [layer.out_channels for layer in net.layers if isinstance(layer, torch.nn.Conv2d)]
print("channels of the convolutions", channels)
print(f"largest map, dense: {max(channels) * height * width * 4 / 2**20:.1f} MiB a picture of {height}x{width}")
print(f"largest map, one window: {channels[0] * (net.size - 2) ** 2 * 4 / 2**20:.2f} MiB")

# %%
with torch.inference_mode():
    found = model.predict(model.features(batch), batch)[0].labels
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4))
for axis, image, title in zip(
    axes,
    [source[0].image, source[0].targets.semantic, found],
    ["picture", "truth", "after 40 steps"],
    strict=True,
):
    axis.imshow(image, **({} if title == "picture" else {"vmin": 0, "vmax": 6, "cmap": "viridis"}))
    axis.set_title(title)
    _ = axis.axis("off")

# %% [markdown]
# ## Farabet et al.: three scales, one net, superpixels
#
# A larger window costs more; the same window on a smaller picture costs less and sees more. The paper puts one net on the three
# levels of a Laplacian pyramid, in YUV, each level with mean 0 and deviation 1 in every neighbourhood of 15x15.

# %%
paper = build(compose("train", ["experiment=none", "model=patch_multiscale_paper"]).model, schema=source.schema).eval()
pyramid, trunk = paper.backbone.stages["c2"].pyramid, paper.backbone.stages["c2"].trunk
with torch.inference_mode():
    images = paper.normalise(batch.images[:1], batch.sizes[:1])
    levels = pyramid(images)
    for level in levels:
        print("level", tuple(level.shape), "-> maps", tuple(trunk(level).shape))
    print("joined", {name: tuple(maps.shape) for name, maps in paper.backbone(images).items()})
figure, axes = plt.subplots(1, 4, figsize=(13, 3.4))
for axis, level in zip(axes, levels, strict=False):
    axis.imshow(level[0, 0], cmap="gray", vmin=-3, vmax=3)
    axis.set_title(f"Y at {level.shape[2]}x{level.shape[3]}")
segments = Superpixels(scale=100.0, sigma=0.5, min_size=20).segments(batch.images[0])
axes[3].imshow(segments % 20, cmap="tab20")
_ = axes[3].set_title(f"{int(segments.max()) + 1} superpixels")

# %% [markdown]
# The maps have a quarter of the picture's resolution. A vote in each superpixel brings the outlines back, as far as the
# segmentation knows them: here the window net's map before and after such a vote.

# %%
with torch.inference_mode():
    voted = Superpixels(scale=100.0, sigma=0.5, min_size=20)(scores["dilated"][0], batch.images[0])
truth = source[0].targets.semantic
figure, axes = plt.subplots(1, 2, figsize=(7, 3.4))
for axis, labels, title in zip(axes, [found, voted], ["every pixel for itself", "one class a superpixel"], strict=True):
    axis.imshow(labels, vmin=0, vmax=6)
    axis.set_title(f"{title}: {(labels == truth).float().mean():.3f} right")
    _ = axis.axis("off")
