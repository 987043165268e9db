# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # One object: its class, its box, its joints
#
# Before there are many objects in a picture there is one. Its class is a classification, its box four numbers, its joints two
# numbers each: classification and regression from one vector, and for the first time two losses in one sum. Letters: B
# images, C classes, K joints, N boxes.

# %%
import albumentations
import matplotlib.pyplot as plt
import torch

from quadrat.configs import build, compose
from quadrat.data.augment import Augment
from quadrat.data.shapes import Shapes
from quadrat.heads.box_code import BoxCode
from quadrat.losses.boxes import Coded, CodeLoss, OverlapLoss, giou, iou
from quadrat.losses.joints import Off
from quadrat.losses.regression import l1, l2, smooth_l1
from quadrat.losses.weighting import alpha as weighted_by_alpha
from quadrat.metrics.localization import LocalizationScores
from quadrat.metrics.pose import PoseScores
from quadrat.models.misses import Misses
from quadrat.ops.crops import crop_resize
from quadrat.plots.draw import draw_detections
from quadrat.structures import Batch, Detections

torch.manual_seed(0)
chosen = ["experiment=none", "data=shapes_single", "model=localizer", "task=localization", "monitor=val/top1"]
chosen += ["data.source.count={train: 320, val: 128, test: 1}", "++data.source.size=[64,64]", "model.size=[64,64]"]
chosen += ["++data.source.kinds=[square,person]", "model/backbone=tiny", "model.backbone.width=8"]
config = compose("train", chosen)
data = build(config.data)
splits = {"train": data.source("train"), "val": data.source("val")}
batches = {
    split: [Batch.collate([source[i] for i in range(first, first + 16)]) for first in range(0, len(source), 16)]
    for split, source in splits.items()
}
batch = batches["train"][0]

# %% [markdown]
# ## One vector, two heads
#
# The trunk's last map becomes one vector. One layer makes class scores of it, another one numbers that stand for a box.

# %%
model = build(config.model, schema=data.schema)
with torch.no_grad():
    found = model.features(batch)
    frames = found["frames"]  # the part of the picture that is looked at: all of it
    maps = model.look.maps(model.normalise(batch.images, batch.sizes), frames[:, None])
print("pictures    ", tuple(batch.images.shape))
print("last map    ", tuple(maps["c5"].shape))
print("vector      ", tuple(model.look.vector(maps).shape))
print("class scores", tuple(found["logits"].shape), data.schema.classes)
print("box numbers ", tuple(found["codes"].shape), "one box for all classes")

# %% [markdown]
# The numbers are shares of the picture, so that they do not depend on its size: centre, width and height, or the edges.

# %%
boxes = torch.stack([target.boxes[0] for target in batch.targets])
for encoding in ("centre", "edges"):
    print(f"{encoding:<7}", [round(value, 2) for value in BoxCode(encoding).encode(boxes[0], frames[0]).tolist()])
print("box    ", boxes[0].tolist(), "in", frames[0].tolist())

# %% [markdown]
# ## Standardisation is a hidden weight
#
# Shares are small numbers and their squares smaller still. Subtracting the training set's mean and dividing by its deviation
# changes nothing in what the head can say, and multiplies its L2 loss: the same boxes, off by the same pixels.

# %%
every = torch.cat([target.boxes for one in batches["train"] for target in one.targets])
everywhere = frames[:1].expand(len(every), -1)
shares, standardised = BoxCode(), BoxCode(standardise="measured")
standardised.measure(every, everywhere)
model.code.measure(every, everywhere)
print("deviations of cx, cy, w, h", [round(value, 3) for value in standardised.std.tolist()])
off = boxes + torch.tensor([4.0, 0.0, 4.0, 0.0])  # four pixels to the right
for name, code in (("shares", shares), ("standardised", standardised)):
    print(
        f"{name:<12} L2 {CodeLoss(l2)(Coded(code.encode(off, frames), off), Coded(code.encode(boxes, frames), boxes)).mean():.4f}"
    )
print(f"a weight of {1 / standardised.std[0] ** 2:.1f}, which no config names")

# %% [markdown]
# ## One box for all classes, or one for each
#
# With a box for each class the loss looks at the true class's box only: no gradient reaches the others.

# %%
each = build(compose("train", [*chosen, "model.shared_box=false"]).model, schema=data.schema)
features = each.features(batch)
features["codes"].retain_grad()
each.loss(features, batch)["object_box"].backward()
print("codes", tuple(features["codes"].shape), "and the length of the gradient on each")
for target, lengths in list(zip(batch.targets, features["codes"].grad.norm(dim=-1), strict=True))[:7]:
    print(f"{data.schema.name(int(target.labels[0])):<9}", [round(length, 3) for length in lengths.tolist()])

# %% [markdown]
# ## What the box is learned by
#
# A box that is 0.4 of a picture wide slides away from the truth, further than its own width. Distances of the numbers go on
# pulling. IoU is 0 from there on and its gradient too: who is too far off never learns. GIoU also counts the gap.

# %%
truth, frame = torch.tensor([0.1, 0.3, 0.5, 0.7]), torch.tensor([0.0, 0.0, 1.0, 1.0])
slide = torch.linspace(0, 1, 201)[:, None].requires_grad_()
moved = truth + slide * torch.tensor([1.0, 0.0, 1.0, 0.0])
coded = Coded(standardised.encode(moved, frame), moved)
right = Coded(standardised.encode(truth, frame).expand(201, 4), truth.expand(201, 4))
losses = {
    "L2": CodeLoss(l2),
    "L1": CodeLoss(l1),
    "smooth L1": CodeLoss(lambda prediction, target: smooth_l1(prediction, target, beta=1.0)),
    "IoU": OverlapLoss(iou),
    "GIoU": OverlapLoss(giou),
}
figure, (left, middle) = plt.subplots(1, 2, figsize=(9, 3.4))
for name, loss in losses.items():
    terms = loss(coded, right)
    (slope,) = torch.autograd.grad(terms.sum(), slide, retain_graph=True)
    left.plot(slide.detach(), terms.detach(), label=name)
    middle.plot(slide.detach(), slope, label=name)
    print(
        f"{name:<9} slope at a shift of 0.3: {slope[60].item():.2f}, at 0.6, where nothing overlaps: {slope[120].item():.2f}"
    )
for axis, title, top in ((left, "loss", 6), (middle, "its slope", 12)):
    axis.axvline(0.4, color="grey", linewidth=1)
    axis.set(title=title, xlabel="shift as a share of the picture; beyond the line IoU is 0", ylim=(-0.2, top))
left.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Alpha, and whether the best loss is the best metric
#
# $\alpha L_{class} + (1 - \alpha) L_{box}$, three times from the same seed with the same pictures and the same number of steps.
# Each run is judged by the total that it minimised, and by what is asked for: the right class, with a box that has an IoU of 0.5.


# %%
def train(alpha: float, steps: int = 120) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build(config.model, schema=data.schema)
    model.code.measure(every, everywhere)
    weighting = weighted_by_alpha({"object_class": 1.0, "object_box": 1.0}, alpha=alpha, regression=["object_box"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 10) * (1 - step / steps))
    for step in range(steps):
        batch = batches["train"][step % len(batches["train"])]
        loss = weighting(model.loss(model.features(batch), batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def validate(model: torch.nn.Module) -> dict[str, float]:
    """The mean of each raw term, and the scores."""
    metric, sums = LocalizationScores(data.schema.classes), {"object_class": 0.0, "object_box": 0.0}
    for batch in batches["val"]:
        features = model.features(batch)
        metric.update(model.predict(features, batch), batch.targets)
        for name, value in model.loss(features, batch).items():
            sums[name] += value.item() / len(batches["val"])
    return sums | metric.compute()


kept, names = {}, ("total", "object_class", "object_box", "class_accuracy", "iou", "top1")
print("alpha", *(f"{name:>14}" for name in names))
for alpha in (0.1, 0.5, 0.9):
    model = train(alpha)
    scores = validate(model)
    scores["total"] = alpha * scores["object_class"] + (1 - alpha) * scores["object_box"]
    kept[alpha] = model, scores
    print(f"{alpha:<5}", *(f"{scores[name]:14.3f}" for name in names))
lowest = min(kept, key=lambda alpha: kept[alpha][1]["total"])
best = max(kept, key=lambda alpha: kept[alpha][1]["top1"])
print(f"the lowest total is that of alpha {lowest}, the best top-1 that of alpha {best}")

# %% [markdown]
# The totals are three different quantities: each alpha measures with a ruler of its own, so the lowest of them does not say which
# run is best. Here is one and the same model with each of the rulers:

# %%
own = kept[best][1]
for alpha in kept:
    total = alpha * own["object_class"] + (1 - alpha) * own["object_box"]
    print(f"the model of alpha {best}, measured with alpha {alpha}: {total:.3f}")

# %%
figure, axes = plt.subplots(2, 4, figsize=(10, 5.4))
for axis, batch in zip(axes.flat, batches["val"], strict=True):  # the first picture of each
    with torch.inference_mode():
        guess = kept[best][0].predict(kept[best][0].features(batch), batch)[0][:1]  # the first of the classes
    fit = iou(guess.boxes, batch.targets[0].boxes)[0]
    picture = batch.images[0].permute(1, 2, 0).numpy()
    axis.imshow(draw_detections(picture, guess, data.schema, threshold=0, zoom=4))
    axis.set_title(f"{data.schema.name(int(batch.targets[0].labels[0]))}: IoU {fit:.2f}")
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# One seed and three values show the mechanism. The answer needs seeds and a finer grid:
#
# ```bash
# quadrat-train sweep=cls_loc_alpha
# quadrat-report runs=<the name that the sweep prints>       # a chart of the loss against the metric is among the others
# ```
#
# ## Joints: the same regression, K times
#
# DeepPose gives every joint two numbers: shares of a frame, from its middle. What is not labelled is masked: its term is 0.

# %%
source = Shapes("notebook", count=8, size=(128, 128), objects=(1, 1), empty=0.0, kinds=["person"])
sample, schema = source[0], source.schema
persons = Batch.collate([source[i] for i in range(8)])
chosen = ["experiment=none", "data=shapes_persons", "model=deeppose", "task=pose", "monitor=val/pdj"]
pose = build(compose("train", [*chosen, "model/backbone=tiny"]).model, schema=schema)
persons.keypoints[0, 0, schema.joint("left wrist"), 2] = 0  # nobody has labelled this one
truth, labelled = pose.truth(persons)
frames = pose.frame(persons, persons.valid)
shares = (truth - (frames[:, None, :2] + frames[:, None, 2:]) / 2) / (frames[:, None, 2:] - frames[:, None, :2])
with torch.no_grad():
    raw = pose.features(persons)["raw"]
    terms = Off(l2)(raw, shares, labelled)
print("joints as pixels", tuple(truth.shape), "as numbers of the first network", tuple(raw.shape))
for name in ("head top", "left wrist", "right wrist"):
    number = schema.joint(name)
    (x, y), (across, down) = truth[0, number].tolist(), shares[0, number].tolist()
    seen = "labelled" if labelled[0, number] else "masked"
    print(
        f"{name:<11} pixel ({x:5.1f}, {y:5.1f})  share ({across:5.2f}, {down:5.2f})  {seen:<8}  L2 {terms[0, number]:.3f}"
    )

# %% [markdown]
# ## A mirror changes names
#
# In a mirror a left wrist is where the right one's picture is, and it *is* a right wrist. Places move, and pairs of names swap.

# %%
mirrored = Augment([albumentations.HorizontalFlip(p=1.0)], flip_pairs=schema.flip_pairs)(sample, seed=0)
print("pairs", [(schema.joints[one], schema.joints[other]) for one, other in schema.flip_pairs][:2], "...")
for name in ("left wrist", "right wrist", "neck"):
    before, after = (one.targets.keypoints[0, schema.joint(name), :2].tolist() for one in (sample, mirrored))
    print(f"{name:<11} ({before[0]:5.1f}, {before[1]:5.1f}) -> ({after[0]:5.1f}, {after[1]:5.1f})")

# %% [markdown]
# ## The cascade: look again, from nearer
#
# A further network sees a square around each joint that was found, two torso diameters wide, and says how far off it is. In the
# paper it learns from simulated errors: the truth, moved by what the network before it was measured to be off
# (`model.simulate`: for which share of the joints). White dots are true joints, red ones what a stage that is off by a sixth of
# a torso would hand on.

# %%
misses, ends = Misses(len(schema.joints)), pose.torso  # left shoulder, right hip
diameter = (truth[:, ends[0]] - truth[:, ends[1]]).norm(dim=-1)
misses.see(torch.randn(64, len(schema.joints), 2) / 6, torch.ones(64, len(schema.joints), dtype=torch.bool))
deviations = ", ".join(f"{value:.2f}" for value in misses.deviation()[:4, 0].tolist())
print(f"measured deviations along x, in torso diameters: {deviations}, ...")
joints = torch.arange(len(schema.joints))
drawn = truth[0] + misses.draw(joints.repeat(20, 1)) * diameter[0]  # (20, K, 2)
start = drawn[0]
side = pose.context * diameter[0]
squares = torch.cat([start - side / 2, start + side / 2], dim=-1)
parts = crop_resize(persons.images[:1].float(), squares[None], (48, 48))[0]  # black outside the picture
print("squares", tuple(squares.shape), "of", f"{side:.0f} pixels ->", tuple(parts.shape))
figure = plt.figure(figsize=(10, 4))
whole = figure.add_subplot(1, 2, 1)
whole.imshow(sample.image)
whole.plot(*drawn.reshape(-1, 2).T, "r.", markersize=2)
whole.plot(*truth[0].T, "wo", markersize=4, markeredgecolor="black")
whole.set(title="true joints and simulated errors", xlim=(0, 128), ylim=(128, 0))
for place, name in zip((3, 4, 7, 8), ("head top", "left elbow", "right knee", "left ankle"), strict=True):
    number = schema.joint(name)
    axis = figure.add_subplot(2, 4, place)
    axis.imshow(parts[number].permute(1, 2, 0).byte())
    axis.plot(*(48 * (truth[0, number] - squares[number, :2]) / side), "wo", markersize=5, markeredgecolor="black")
    axis.plot(24, 24, "r.")
    axis.set_title(name)
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## PDJ and PCP by hand
#
# PDJ counts joints within a fifth of the torso's diameter. PCP counts limbs both of whose ends are within half the limb's
# length. One wrist of a figure that is right otherwise moves away: a joint of 14 and a limb of 8.

# %%
target = sample.targets
places = target.keypoints[0, :, :2]
elbow, wrist = schema.joint("left elbow"), schema.joint("left wrist")
torso = (places[schema.joint("left shoulder")] - places[schema.joint("right hip")]).norm().item()
arm = (places[elbow] - places[wrist]).norm().item()
print(f"torso {torso:.1f} pixels, a fifth of it {torso / 5:.1f}; lower arm {arm:.1f}, half of it {arm / 2:.1f}")
print("  shift     PDJ  by hand     PCP  by hand   loose")
for shift in (0.9 * torso / 5, 1.1 * torso / 5, 1.1 * arm / 2, 1.1 * arm):
    guess = places.clone()
    guess[wrist, 0] += shift
    seen = torch.cat([guess, torch.ones(len(guess), 1)], dim=1)[None]
    metric = PoseScores(schema)
    metric.update([Detections(target.boxes, torch.ones(1), target.labels, target.size, keypoints=seen)], [target])
    numbers = metric.compute()
    pdj = 1 - (shift > torso / 5) / 14
    pcp = 1 - (shift > arm / 2) / 8
    print(
        f"{shift:7.1f} {numbers['pdj']:7.3f}  {pdj:7.3f} {numbers['pcp']:7.3f}  {pcp:7.3f} {numbers['pcp_loose']:7.3f}"
    )

# %% [markdown]
# Whether a limb is right depends on its own length: a foreshortened arm is hardly ever right, and PDJ was made for that reason.
# The loose PCP takes the mean of both ends, so an elbow that is exactly right makes up for the wrist.
