# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Growing a map: from a bed of nails to the transpose of a matrix
#
# A network that labels pixels first shrinks its maps, which is cheap and sees far, and must then grow them back. The lecture
# shows five ways to do so. Here they are by numbers, then the learned one as the matrix that it is, and why some kernels
# print a checkerboard.

# %%
import matplotlib.pyplot as plt
import torch
from torch.nn import functional

from quadrat.necks.upsample import Bilinear, MaxUnpool, Nails, Nearest, PixelShuffle, ResizeConv, Transposed
from quadrat.ops.checkerboard import checkerboard_index, overlap_counts, phases
from quadrat.ops.convmatrix import conv_matrix
from quadrat.ops.unpool import bed_of_nails, bilinear, bilinear_kernel, max_pool, max_unpool, nearest

torch.manual_seed(0)
torch.set_printoptions(precision=2, sci_mode=False)

# %% [markdown]
# ## Fixed: copy, nail, put back, interpolate
#
# Max-unpooling remembers where the pooling took each value from, and puts the new values there: the network is symmetric,
# and the outlines of things, which pooling blurs, come back.

# %%
small = torch.tensor([[[[1.0, 2], [3, 4]]]])
pooled = torch.tensor([[[[1.0, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]]]])
largest, places = max_pool(pooled)
grown = {
    "nearest": nearest(small, (4, 4)),
    "bed of nails": bed_of_nails(small, (4, 4)),
    "max-unpooling": max_unpool(small, places, (4, 4)),
    "bilinear": bilinear(small, (4, 4)),
}


def write_values(axes: plt.Axes, values: torch.Tensor, title: str) -> None:
    """The values of a small map in their cells."""
    axes.imshow(values, cmap="Blues", vmin=0, vmax=2 * values.max())
    for (i, j), value in zip(
        torch.cartesian_prod(*map(torch.arange, values.shape)).tolist(), values.flatten(), strict=True
    ):
        axes.text(j, i, f"{value.item():g}"[:4], ha="center", va="center")
    axes.set(title=title, xticks=[], yticks=[])


figure, panels = plt.subplots(1, 6, figsize=(13, 2.4))
write_values(panels[0], small[0, 0], "before")
write_values(panels[1], pooled[0, 0], "a map that was pooled")
for axes, (name, values) in zip(panels[2:], grown.items(), strict=True):
    write_values(axes, values[0, 0], name)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Learned: each cell stamps the kernel
#
# A transposed convolution writes, for each cell, its value times the kernel, one stride further for each next cell, and adds
# what overlaps. In one row with filter $(x, y, z)$ and stride 2, $(a, b)$ becomes $(ax,\ ay,\ az + bx,\ by,\ bz)$. The fixed
# ways are stamps too: nearest stamps ones, nails stamp a single 1, bilinear stamps a tent.

# %%
a, b, x, y, z = 2.0, 3.0, 11.0, 13.0, 17.0
row, filter_ = torch.tensor([[[a, b]]]), torch.tensor([[[x, y, z]]])
print("stamped:", functional.conv_transpose1d(row, filter_, stride=2).tolist()[0][0])
print("by hand:", [a * x, a * y, a * z + b * x, b * y, b * z])

nail = torch.tensor([[[[1.0, 0], [0, 0]]]])
print(
    "nearest is a stamp of ones:",
    torch.equal(nearest(small, (4, 4)), functional.conv_transpose2d(small, nail**0, stride=2)),
)
print(
    "nails are a stamp of one:  ",
    torch.equal(grown["bed of nails"], functional.conv_transpose2d(small, nail, stride=2)),
)
print("the tent of bilinear, odd:", bilinear_kernel(3).tolist())

# %% [markdown]
# ## Why "transposed"
#
# A convolution is a product with a matrix $C$: a 3x3 filter on a 4x4 map makes 2x2, so $C$ is 4 x 16, with nine numbers in
# each row. Its transpose is 16 x 4 and goes from 2x2 to 4x4: that is the transposed convolution, with the same filter.

# %%
weight = torch.arange(1.0, 10).reshape(1, 1, 3, 3)
C = conv_matrix(weight, (4, 4))
y4 = torch.randn(1, 1, 2, 2)
print("C:", tuple(C.shape), "non-zeros a row:", (C != 0).sum(1).tolist())
print(
    "C.T @ y is the transposed convolution:",
    torch.allclose(C.T @ y4.flatten(), functional.conv_transpose2d(y4, weight).flatten()),
)

C2 = conv_matrix(weight, (5, 5), stride=2)
figure, (left, right) = plt.subplots(2, 1, figsize=(7, 3.6))
for axes, matrix, title in ((left, C, "stride 1: 4x4 to 2x2"), (right, C2, "stride 2: 5x5 to 2x2")):
    axes.imshow(matrix, cmap="viridis")
    axes.set(title=title, yticks=range(4), ylabel="output cell", xlabel="input cell")
figure.tight_layout()
plt.show()

# %% [markdown]
# At stride 2 each row is moved by two cells (and by two rows of the map) against the one before. $C^T$ is its transpose
# still; but it is no longer an ordinary convolution of its input: it is one of the input *with zeros between its cells*, by
# the flipped kernel. So "fractionally strided".

# %%
stamped = functional.conv_transpose2d(y4, weight, stride=2)
dilated = bed_of_nails(y4, (3, 3))
print(
    "stride 1 is a convolution by the flipped kernel:   ",
    torch.allclose(
        functional.conv_transpose2d(y4, weight), functional.conv2d(y4, weight.flip(2, 3), padding=2), atol=1e-5
    ),
)
print(
    "stride 2 is one of the map with zeros in between:",
    torch.allclose(stamped, functional.conv2d(dilated, weight.flip(2, 3), padding=2), atol=1e-5),
)

# %% [markdown]
# ## Adjoint, not inverse
#
# "Deconvolution" would give the input back. The transpose does not: it is the *adjoint*, $\langle Cx, y \rangle =
# \langle x, C^T y \rangle$, which is also how the gradient goes back through a convolution. Four numbers cannot say what
# sixteen were.

# %%
weight = torch.randn(1, 1, 3, 3)
image, y4 = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 2, 2)
convolved = functional.conv2d(image, weight)
back = functional.conv_transpose2d(convolved, weight)
print("<Cx, y>  :", round((convolved * y4).sum().item(), 5))
print("<x, C'y> :", round((image * functional.conv_transpose2d(y4, weight)).sum().item(), 5))
print("error of C'Cx as x:", round(((back - image).norm() / image.norm()).item(), 2), "times x itself")

# %% [markdown]
# ## Checkerboards
#
# Someone asked in the lecture why overlaps are added and not averaged: because a transpose does. The price: with kernel 3 at
# stride 2 one pixel hears 1, 2 or 4 cells, depending on its *phase*, that is on whether its row and its column are even.
# Wherever the kernel is a multiple of the stride, each hears the same number.
#
# Below: how many cells a pixel hears, and what a transposed convolution of 64 maps of noise with random weights makes
# (absolute values, averaged over 300 kernels). Even overlap eases the pattern and does not remove it: each phase still has
# weights of its own.


# %%
def random_outputs(kernel: int, draws: int = 300) -> torch.Tensor:
    """One map (1, draws, 12, 12) of the interior for each of so many random kernels of 64 channels."""
    noise = torch.randn(1, 64, 10, 10)
    return functional.conv_transpose2d(noise, torch.randn(64, draws, kernel, kernel), stride=2)[..., 4:16, 4:16]


figure, panels = plt.subplots(2, 4, figsize=(10, 5.2))
for kernel, (above, below) in zip((2, 3, 4, 5), panels.T, strict=True):
    counts = overlap_counts(kernel, 2).repeat(6, 6)
    above.imshow(counts, cmap="magma", vmin=0, vmax=9)
    above.set(title=f"k{kernel} s2: {sorted(set(counts.flatten().tolist()))} cells", xticks=[], yticks=[])
    strength = random_outputs(kernel).abs().mean((0, 1))
    below.imshow(strength / strength.mean(), cmap="magma", vmin=0.4, vmax=1.6)
    below.set(title="random weights", xticks=[], yticks=[])
figure.tight_layout()
plt.show()

print("phase variances, largest / smallest; median of 200 random kernels")
for kernel in (3, 4, 2):
    ratios = []
    for _ in range(200):
        inside = functional.conv_transpose2d(torch.randn(1, 64, 16, 16), torch.randn(64, 1, kernel, kernel), stride=2)
        variances = phases(inside[..., 4:28, 4:28], 2).var(-1)
        ratios.append(variances.max() / variances.min())
    print(f"  k{kernel} s2: {torch.stack(ratios).median():.2f}")

# %% [markdown]
# ## One number to log
#
# `checkerboard_index` says how unlike the phases of a map are, in their means and their spreads: 0 without a pattern, 1 with
# nothing else. Here for the whole kit before any training; what training makes of it is for the metric and the log to say.

# %%
x = torch.randn(4, 64, 16, 16)
_, places = max_pool(torch.randn(4, 64, 32, 32))
kit = {
    "Nearest": Nearest(64, 64),
    "Bilinear": Bilinear(64, 64),
    "PixelShuffle": PixelShuffle(64, 64),
    "ResizeConv": ResizeConv(64, 64),
    "Transposed k4": Transposed(64, 64, kernel=4),
    "Transposed k4, bilinear": Transposed(64, 64, kernel=4, init="bilinear"),
    "Transposed k2": Transposed(64, 64, kernel=2),
    "Transposed k3": Transposed(64, 64, kernel=3),
    "MaxUnpool": MaxUnpool(64, 64),
    "Nails": Nails(64, 64),
}
with torch.no_grad():
    for name, up in kit.items():
        index = checkerboard_index(up(x, (32, 32), places)[..., 2:-2, 2:-2], up.stride)
        print(f"{name:24s} {index:.3f}")

# %% [markdown]
# Nails are all pattern, and convolutions that follow must fill them in. Max-unpooling has as many zeros, but in places that
# the picture chose. In a model each is one word:
#
# ```bash
# quadrat-train model=segnet_basic model/neck/upsample=transposed_k3   # nearest, nails, max_unpool, bilinear, ...
# ```
