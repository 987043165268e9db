"""Several jobs of a sweep at once on the GPUs of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Sequence

from tqdm import tqdm

from quadrat import ranks, signals
from quadrat.launchers.base import Draft
from quadrat.launchers.process import POLL, Attempt, attended
from quadrat.sweeps.ledger import Job, Sweep
from quadrat.sweeps.table import counts


class LocalGpus:
    """Each job in a process of its own that sees only its GPUs; a GPU that is named twice is shared by two jobs.

    ``gpus``: their numbers or names, None for all that there are. ``gpus_per_job``: None for as many as the job's
    `trainer.devices`. ValueError without GPUs.
    """

    def __init__(self, gpus: Sequence[int | str] | None = None, gpus_per_job: int | None = None) -> None:
        self.gpus = [str(gpu) for gpu in (visible() if gpus is None else gpus)]
        self.gpus_per_job = gpus_per_job
        if not self.gpus:
            raise ValueError(
                "launcher=local_gpus found no GPU (neither CUDA_VISIBLE_DEVICES nor nvidia-smi names one); "
                "launcher=local runs the jobs one after another, launcher.gpus=[0,1] names GPUs"
            )

    def check(self, drafts: Sequence[Draft]) -> None:
        """Raise ValueError for a job that wants more GPUs than there are, or others than it will see."""
        for draft in drafts:
            self._wanted(draft)

    def run(self, sweep: Sweep, drafts: Sequence[Draft]) -> None:
        """See every job to its end, as many at once as there are GPUs for, in their order."""
        with attended() as lifeline, tqdm(total=len(drafts), unit="job", disable=None) as bar:
            shift = Shift(self.gpus, [(draft.job, self._wanted(draft)) for draft in drafts], lifeline, bar)
            while shift.goes_on():
                shift.look()
                time.sleep(POLL)
            signals.leave_if_asked()

    def _wanted(self, draft: Draft) -> int:
        trainer = draft.config.trainer
        devices = None if trainer.devices in ("auto", -1, "-1") else ranks.wanted(trainer.devices, trainer.accelerator)
        wanted = self.gpus_per_job or devices or 1
        if devices not in (None, wanted):
            raise ValueError(
                f"{draft.job.label}: trainer.devices={devices}, but launcher.gpus_per_job={wanted}; leave one of them out"
            )
        present = len(set(self.gpus))
        if wanted > present:
            raise ValueError(
                f"{draft.job.label} needs {wanted} GPUs, there {'is' if present == 1 else 'are'} {present} "
                f"({', '.join(self.gpus)}); trainer.devices={present} fits"
            )
        return wanted


class Shift:
    """The jobs that wait, with the number of GPUs that each wants, those at work with theirs, and the GPUs that are free."""

    def __init__(self, gpus: Sequence[str], jobs: Sequence[tuple[Job, int]], lifeline: int, bar: tqdm) -> None:
        self.waiting, self.running, self.free = list(jobs), dict[Attempt, list[str]](), list(gpus)
        self.ended, self.told, self.lifeline, self.bar = Counter[str](), 0, lifeline, bar
        self.threads = str(max(1, (os.cpu_count() or 1) // len(gpus)))  # side by side, not on top of each other

    def goes_on(self) -> bool:
        """Is there a job at work, or one still to be started?"""
        return bool(self.running or (self.waiting and not signals.received()))

    def look(self) -> None:
        """Start what can be started, pass on a signal, and see who has ended."""
        while self.waiting and not signals.received() and self._start(*self.waiting[0]):
            self.waiting.pop(0)
        self._pass_on()
        for attempt in [attempt for attempt in self.running if attempt.over()]:
            self._end(attempt)
        at_work = Counter(running=len(self.running), queued=len(self.waiting))
        self.bar.set_postfix_str(counts(self.ended + at_work))

    def _start(self, job: Job, wanted: int) -> bool:
        given = list(dict.fromkeys(self.free))[:wanted]  # different ones, where some are named twice
        if len(given) < wanted:
            return False
        for gpu in given:
            self.free.remove(gpu)
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(given)}
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", self.threads)
        self.running[Attempt(job, self.lifeline, environment)] = given
        self.bar.write(f"started  {job.label}  on GPU {','.join(given)}: {os.path.relpath(job.log)}")
        return True

    def _pass_on(self) -> None:
        if signals.received() != self.told:
            self.told = signals.received()
            for attempt in self.running:
                attempt.tell(self.told)

    def _end(self, attempt: Attempt) -> None:
        self.free += self.running.pop(attempt)
        state = attempt.settle()
        self.ended[state] += 1
        self.bar.write(f"{state:<9}{attempt.job.label}")
        self.bar.update()


def visible() -> list[str]:
    """The GPUs that a process started here would see, found without importing torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() and gpu.strip() != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^GPU (\d+):", listed, flags=re.MULTILINE)
