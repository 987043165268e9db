"""The processes of one job: how many, which one this is, and starting them on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quadrat import signals

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

GRACE = 75.0
"""Seconds that the other ranks have to end by themselves after one has; the first may have to wait for Weights & Biases."""


def placed() -> bool:
    """Has somebody (our own start below, torchrun, or srun) started this process as one rank of several?"""
    return "LOCAL_RANK" in os.environ or _by_slurm()


def rank() -> int:
    """The global rank of this process, known before any process group is."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if _by_slurm():
        return int(os.environ["SLURM_PROCID"])
    return int(os.environ.get("LOCAL_RANK", 0))


def _by_slurm() -> bool:
    """An interactive shell of SLURM sets SLURM_NTASKS too; only a task of a step has a rank among several."""
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def environment() -> ClusterEnvironment:
    """Who started the ranks, told to Lightning instead of guessed by it."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if _by_slurm():
        return SLURMEnvironment(auto_requeue=False)  # its handler saves inside a step and may hang several ranks
    return LightningEnvironment()


def wanted(devices: Any, accelerator: str) -> int:
    """How many processes `trainer.devices` asks for on this machine."""
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if isinstance(devices, str) and "," in devices:
        return len([one for one in devices.split(",") if one.strip()])
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        return max(1, _gpus()) if accelerator in ("gpu", "cuda", "auto") else 1
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices={devices}: give a number of processes, a list of devices, or auto")
    return devices


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def start(folder: Path, count: int) -> int:
    """Run the frozen job of a folder in ``count`` processes and wait; the exit code is that of the first that failed.

    Signals that this process receives go on to the ranks. A rank that dies ends the others, and ranks whose parent dies
    end too.
    """
    alive, parent = os.pipe()
    port = _free_port()
    try:
        children = [_child(folder, local, count, alive, port) for local in range(count)]
        os.close(alive)
        return _wait(children)
    finally:
        os.close(parent)


def _child(folder: Path, local: int, count: int, alive: int, port: int) -> subprocess.Popen[bytes]:
    threads = str(max(1, (os.cpu_count() or 1) // count))
    place = {"LOCAL_RANK": local, "RANK": local, "WORLD_SIZE": count, "NODE_RANK": 0, "MASTER_PORT": port}
    environment = {"OMP_NUM_THREADS": threads, **os.environ, "MASTER_ADDR": "127.0.0.1", "QUADRAT_PARENT": str(alive)}
    environment |= {name: str(value) for name, value in place.items()}
    command = [sys.executable, "-m", "quadrat.worker", str(folder)]
    # a session of its own: Ctrl-C in the terminal reaches the ranks once, through their parent
    return subprocess.Popen(command, env=environment, pass_fds=[alive], start_new_session=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(children: list[subprocess.Popen[bytes]]) -> int:
    told, failed, since = 0, 0, 0.0
    while any(child.poll() is None for child in children):
        time.sleep(0.1)
        if signals.received() > told:
            told = signals.received()
            _send(children, told)
        codes = [child.returncode for child in children if child.returncode]
        if codes and not failed:
            failed, since = codes[0], time.monotonic()
        if failed and time.monotonic() - since > GRACE:
            _send(children, signal.SIGKILL)
    codes = [child.returncode for child in children if child.returncode]
    code = failed or (codes[0] if codes else 0)
    return 128 - code if code < 0 else code


def _send(children: list[subprocess.Popen[bytes]], signum: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(signum)
