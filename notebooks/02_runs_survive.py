# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A run that is stopped loses nothing
#
# On a cluster a run is stopped many times before it is done. Here one is stopped in the middle of an epoch, as a scheduler
# would stop it, and started again by the same command; beside it, the same run is left alone. Both end with the same bits.

# %%
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from quadrat import signals
from quadrat.callbacks.csv_log import CsvLog
from quadrat.configs import compose
from quadrat.jobs import train
from quadrat.runs import Run

logs = Path(tempfile.mkdtemp())
small = [
    *("data.source.count=16", "data.batch_size=2", "trainer.max_epochs=3", "trainer.log_every_n_steps=1"),
    *(
        "model.neck.channels=16",
        "model.layers.hidden=32",
        "callbacks.pictures=null",
        "trainer.enable_progress_bar=false",
    ),
]

# %% [markdown]
# ## Left alone
#
# Sample order is a function of (seed, epoch), augmentation of (seed, epoch, picture), and what a step draws of (seed, epoch,
# batch, rank). So there is no state of a random generator to save, and none to lose.

# %%
config = compose("train", [*small, f"paths.logs={logs / 'alone'}"])
train(config)
alone = Run(config.paths.run)

# %% [markdown]
# ## Stopped in the second epoch
#
# A handler does nothing but remember the signal. At the next boundary of an optimiser step all ranks agree to save and to leave,
# with the exit code 128 + the signal's number.

# %%
config = compose("train", [*small, f"paths.logs={logs / 'stopped'}"])
stopped = Run(config.paths.run)


def preempt(after: int) -> None:
    """What SLURM does when a more important job wants the node."""
    while len(CsvLog(stopped.log).rows()) < after:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


usual = {signum: signal.getsignal(signum) for signum in signals.STOPPING}
signals.arm()
threading.Thread(target=preempt, args=(12,), daemon=True).start()
try:
    train(config)
except signals.Stopped as stop:
    print("exit code", stop.code, "state", stopped.status["state"], "reason", stopped.status["reason"])
finally:
    signals.forget()
    for signum, handler in usual.items():
        signal.signal(signum, handler)

# %% [markdown]
# ## The same command again
#
# It finds the newest checkpoint that loads, cuts the log back to it, leaves out the batches that have been trained on, and
# goes on.

# %%
stopped_at = torch.load(stopped.last, weights_only=True)["global_step"]
train(config)
rows = CsvLog(stopped.log).rows()
print("stopped after", stopped_at, "steps; rows in the log now:", len(rows))

# %% [markdown]
# ## The same bits

# %%
one, other = (torch.load(run.last, weights_only=True)["state_dict"] for run in (alone, stopped))
print("all weights equal:", all(torch.equal(one[name], other[name]) for name in one))
print("all rows equal:   ", CsvLog(alone.log).rows() == rows)

figure, axes = plt.subplots(figsize=(7, 3))
for run, style, label in ((alone, "-", "left alone"), (stopped, "--", "stopped and resumed")):
    losses = [(int(row["step"]), float(row["train/total"])) for row in CsvLog(run.log).rows() if "train/total" in row]
    axes.plot(*zip(*losses, strict=True), style, label=label)
axes.axvline(stopped_at, color="grey", linewidth=1)
axes.set(xlabel="step", ylabel="total loss", title="stopped at the grey line")
axes.legend()
plt.show()

# %% [markdown]
# A sweep is the same thing many times: its jobs are frozen when it is launched, each is a run folder, and launching it again does
# what is left. `quadrat-report status <sweep>` shows how it stands.
