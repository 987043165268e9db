# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # What a loss weight does
#
# A detector minimises one number, and this number is made of four. Here is what each of them asks of the parameters they
# share, what weights do about it, and what it looks like when the weights are learned or the gradients themselves are
# combined.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from quadrat.configs import build, compose
from quadrat.losses.balancing import MGDA, CAGrad, NashMTL, PCGrad
from quadrat.losses.learned import Uncertainty
from quadrat.losses.term_gradients import TermGradients
from quadrat.losses.weighting import WeightedSum
from quadrat.tasks.backward import similarity

torch.manual_seed(0)
config = compose("train", ["experiment=shapes_small"])
data = build(config.data)
model = build(config.model, schema=data.schema)
batch = next(iter(data.train_dataloader()))

# %% [markdown]
# ## Four raw terms, one weighting
#
# A model returns its terms raw and by name. The weighting is the only place that knows weights; a misspelt name is refused.

# %%
losses = model.loss(model.features(batch), batch)
print({name: round(value.item(), 3) for name, value in losses.items()})
weighting = WeightedSum({"rpn_objectness": 1, "rpn_box": 10, "region_class": 1, "region_box": 1})
print("total:", round(weighting(losses).item(), 3))
try:
    WeightedSum({"rpn_objectness": 1, "rpn_bax": 10, "region_class": 1, "region_box": 1})(losses)
except KeyError as error:
    print(error.args[0])

# %% [markdown]
# ## What each term asks of the shared parameters
#
# The length of a term's gradient says how much it pulls, the cosine between two of them whether they pull the same way.
# Training logs both every `task.gradients_every` steps (`train/gradient_norm/<term>`, `train/cosine/<a>/<b>`). They are what
# weights act on: a weight of 10 on a gradient of length 0.01 is still little.

# %%
shared = [parameter for part in model.shared() for parameter in part.parameters()]
gradients = TermGradients(shared)
gradients.add(list(losses.values()), torch.tensor(1.0))
names, gram = tuple(losses), gradients.gram()
numbers = {name: value.item() for name, value in similarity(names, gram).items()}

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
left.bar(names, [numbers[f"gradient_norm/{name}"] for name in names])
left.set(yscale="log", title="length of each term's gradient")
left.tick_params(axis="x", rotation=15)
norms = gram.diagonal().sqrt()
shown = right.imshow(gram / norms / norms[:, None], vmin=-1, vmax=1, cmap="RdBu")
right.set(title="cosine between them", xticks=range(4), yticks=range(4), yticklabels=names)
right.set_xticklabels(names, rotation=30, ha="right")
figure.colorbar(shown)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Learned weights: uncertainty
#
# With $e^{-s} L / 2 + s / 2$ and $L$ held still, $s$ goes to $\log L$ and the weight to $1 / (2 L)$: a small loss gets a
# large weight, whether or not it deserves one. That is also why nobody may choose by the weighted total: it falls when the
# weights do.

# %%
learned = Uncertainty({"box": 1.0, "class": 1.0}, regression=["box", "class"])
optimizer = torch.optim.Adam(learned.parameters(), lr=0.05)
weights, totals = [], []
for _ in range(200):
    total = learned({"box": torch.tensor(0.05), "class": torch.tensor(2.0)})
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    weights.append([value.item() for value in learned.weights().values()])
    totals.append(total.item())

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
left.plot(weights, label=["box: L = 0.05, weight to 10", "class: L = 2, weight to 0.25"])
left.set(title="weights, while the losses stay as they are", xlabel="step", yscale="log")
left.legend()
right.plot(totals)
right.axhline(0, color="grey", linewidth=1)
right.set(title="the total falls below zero all the same", xlabel="step")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Combined gradients: two quadratics that disagree
#
# Two bowls, one ten times as steep. Between their lowest points (the line) neither can be lowered without raising the other:
# every point of it is Pareto optimal. Where a method arrives on the line is its idea of fairness; the sum goes where the
# steep one wants.


# %%
def bowls(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Lowest at (-1, 0) and at (1, 0)."""
    flat = ((x - torch.tensor([-1.0, 0.0])) ** 2).sum()
    steep = 10 * ((x - torch.tensor([1.0, 0.0])) ** 2).sum()
    return {"flat": flat, "steep": steep}


def path(kind: type, start: tuple[float, float], rate: float) -> np.ndarray:
    """Where a weighting's steps, each of the same length, lead."""
    balancing, x, places = kind({"flat": 1.0, "steep": 1.0}), torch.tensor(start), [start]
    for step in range(120):
        at = torch.nn.Parameter(x.clone())
        terms = bowls(at)
        own = TermGradients([at])
        own.add(list(terms.values()), torch.tensor(1.0))
        balancing.see(own.gram(), torch.stack(list(terms.values())).detach())
        own.set_gradients(torch.stack(list(balancing.weights().values())))
        length = at.grad.norm().clamp(min=0.3)  # where the gradient vanishes, so does the step
        x = x - rate * 0.97**step * at.grad / length
        places.append(tuple(x.tolist()))
    return np.array(places)


figure, axes = plt.subplots(figsize=(7, 4.2))
grid = np.stack(np.meshgrid(np.linspace(-1.8, 1.8, 60), np.linspace(-0.4, 1.8, 60)), axis=-1)
for centre, colour in ((-1.0, "tab:blue"), (1.0, "tab:red")):
    axes.contour(
        grid[..., 0], grid[..., 1], np.hypot(grid[..., 0] - centre, grid[..., 1]), 8, colors=colour, alpha=0.15
    )
axes.plot([-1, 1], [0, 0], color="black", linewidth=1)
for kind in (WeightedSum, MGDA, PCGrad, CAGrad, NashMTL):
    places = path(kind, (-0.6, 1.5), rate=0.1)
    axes.plot(*places.T, marker=".", markersize=3, linewidth=1, label=kind.__name__)
axes.set(title="from the same start, with steps of the same length", aspect="equal")
axes.legend()
plt.show()

# %% [markdown]
# ## Which one is best?
#
# The metric says, over seeds: not the loss. A sweep and its report answer for your data:
#
# ```bash
# quadrat-train sweep=rpn_lambda experiment=shapes_small     # 0.1, 1, 10, 100 for one weight, two normalisers, three seeds
# quadrat-train sweep=weighter experiment=shapes_small       # every weighting of this project
# quadrat-report runs=<the name that the sweep prints>       # mean and deviation, what is within noise, curves, pictures
# ```
