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
from quadrat.sweeps.ledger import Sweep
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
        waiting, running, states = list(drafts), dict[Attempt, list[str]](), Counter[str]()
        free, told = list(self.gpus), 0
        with attended() as lifeline, tqdm(total=len(drafts), unit="job", disable=None) as bar:
            while running or (waiting and not signals.received()):
                while waiting and not signals.received() and (given := self._given(free, waiting[0])):
                    draft = waiting.pop(0)
                    running[self._start(draft, given, lifeline)] = given
                    bar.write(f"started  {draft.job.label}  on GPU {','.join(given)}: {os.path.relpath(draft.job.log)}")
                if signals.received() != told:
                    told = signals.received()
                    for attempt in running:
                        attempt.tell(told)
                for attempt in [attempt for attempt in running if attempt.over()]:
                    free += running.pop(attempt)
                    state = attempt.settle()
                    states[state] += 1
                    bar.write(f"{state:<9}{attempt.job.label}")
                    bar.update()
                bar.set_postfix_str(counts(states + Counter(running=len(running), queued=len(waiting))))
                time.sleep(POLL)
            signals.leave_if_asked()

    def _given(self, free: list[str], draft: Draft) -> list[str]:
        """Take the GPUs of a job from the free ones; none while there are too few."""
        different, wanted = list(dict.fromkeys(free)), self._wanted(draft)
        if len(different) < wanted:
            return []
        for gpu in different[:wanted]:
            free.remove(gpu)
        return different[:wanted]

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

    def _start(self, draft: Draft, gpus: Sequence[str], lifeline: int) -> Attempt:
        threads = max(1, (os.cpu_count() or 1) // len(self.gpus))
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        if "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(threads)  # side by side, not on top of each other
        return Attempt(draft.job, lifeline, environment)


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
