# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # One picture, from its pixels to losses and boxes
#
# A detector answers *what is where*. This notebook follows one picture through Faster R-CNN and shows the shape of
# everything on the way. Letters: B images, C classes, H W height and width, M objects, R regions, A anchors, D channels.

# %%
import matplotlib.pyplot as plt
import torch

from quadrat.configs import build, compose
from quadrat.plots.draw import draw_detections, draw_targets

torch.manual_seed(0)
config = compose("train")  # what `quadrat-train` would use
data = build(config.data)
print(data.schema.classes)

# %% [markdown]
# ## The picture and its truth
#
# A sample is a uint8 RGB array and its `Targets`: boxes `x1 y1 x2 y2` in pixels, labels 1..C, and, because these scenes are
# drawn, the truth of every other task too.

# %%
sample = data.source("val")[3]
targets = sample.targets
print("picture  ", sample.image.shape, sample.image.dtype)
print("boxes    ", tuple(targets.boxes.shape), targets.boxes[0].tolist())
print("labels   ", targets.labels.tolist(), [data.schema.name(int(label)) for label in targets.labels])
print("masks    ", len(targets.masks), "outlines, the first of", len(targets.masks[0][0]), "points")
print("joints   ", tuple(targets.keypoints.shape), "x, y, visibility")
print("captions ", targets.captions)
plt.imshow(draw_targets(sample.image, targets, data.schema, zoom=3))
_ = plt.axis("off")

# %% [markdown]
# ## A batch
#
# Pictures of different sizes are padded to one, objects to the largest number: fixed shapes, and a mask that says what is real.
# The pixels stay bytes until they are on the device.

# %%
batch = next(iter(data.val_dataloader()))
print("images ", tuple(batch.images.shape), batch.images.dtype)
print("boxes  ", tuple(batch.boxes.shape), "of which real:", batch.valid.sum(1).tolist())

# %% [markdown]
# ## Features
#
# The trunk halves the picture again and again; the pyramid carries what the coarse maps know down to the fine ones.

# %%
model = build(config.model, schema=data.schema)
features = model.features(batch)
for name, feature in features.items():
    print(name, tuple(feature.shape), "stride", model.neck.strides[name])

# %% [markdown]
# ## Anchors and proposals
#
# At every cell of every map sit a few base boxes. The proposer says of each how likely it holds an object, and how it should
# move; the best, suppressed, become proposals.

# %%
judged = model.proposer(features)
print("anchors    ", tuple(judged.anchors.shape), "by map:", judged.counts)
print("objectness ", tuple(judged.objectness.shape))
print("deltas     ", tuple(judged.deltas.shape))
proposals = model.proposer.propose(judged, batch, model.proposer.train_limits)
print("proposals  ", tuple(proposals.boxes.shape), "of which real:", proposals.valid.sum(1).tolist())

# %% [markdown]
# ## Regions and the box head
#
# Proposals and truth together are matched by overlap, sampled, and each region is resampled to 7 x 7 cells.

# %%
regions = model.sampler(proposals, batch)
pooled = model.box.pool(features, regions.boxes)
logits, deltas = model.box(features, regions.boxes)
print("regions ", tuple(regions.boxes.shape), "positive:", regions.positive.sum(1).tolist())
print("pooled  ", tuple(pooled.shape))
print("logits  ", tuple(logits.shape), "C classes and background")
print("deltas  ", tuple(deltas.shape), "a box for each class")

# %% [markdown]
# ## Four losses, by name, and one number
#
# The model returns them raw. Only the weighting knows weights; `loss.weights.rpn_box=2` on the command line lands here.

# %%
weighting = build(config.loss.weighting, weights=dict(config.loss.weights))
losses = model.loss(features, batch)
for name, value in losses.items():
    print(f"{name:<16} {value.item():.4f}   weight {weighting.weights()[name].item():g}")
print(f"{'total':<16} {weighting(losses).item():.4f}")

# %% [markdown]
# ## Twenty steps on one batch, then boxes
#
# Far too few to know anything else, enough to see the losses fall.

# %%
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
model.train()
for step in range(20):
    losses = model.loss(model.features(batch), batch)
    total = weighting(losses)
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    if step % 5 == 4:
        print(step + 1, {name: round(value.item(), 3) for name, value in losses.items()})

# %%
model.eval()
with torch.no_grad():
    found = model.predict(model.features(batch), batch)[3]
print(
    len(found),
    "detections; the best:",
    found.labels[:3].tolist(),
    [round(score, 2) for score in found.scores[:3].tolist()],
)
plt.imshow(draw_detections(sample.image, found[:5], data.schema, threshold=0.0, zoom=3))
_ = plt.axis("off")
