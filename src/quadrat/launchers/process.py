"""One attempt at a job as a process of its own, so that whatever happens to it happens to no other."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from quadrat import signals
from quadrat.sweeps.ledger import Job, standing

WORKER = (sys.executable, "-m", "quadrat.worker")
"""The command that runs the frozen job of the folder named after it."""

POLL = 0.1
"""Seconds between two looks at a process."""


class Attempt:
    """A running job whose output goes to its log; it ends when this process does, however that ends."""

    def __init__(self, job: Job, lifeline: int, environment: dict[str, str] | None = None) -> None:
        self.job = job
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            self.begin = log.tell()
            self.process = subprocess.Popen(
                [*WORKER, str(job.run.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**_surroundings(lifeline), **(environment or {})},
                pass_fds=[lifeline],
                start_new_session=True,  # Ctrl-C in the terminal reaches it once, through the sweep
            )

    def over(self) -> bool:
        """Has the process ended?"""
        return self.process.poll() is not None

    def tell(self, signum: int) -> None:
        """Pass a signal on."""
        if not self.over():
            self.process.send_signal(signum)

    def follow(self) -> None:
        """Show what the job prints until it ends, and pass on the signal that asks this process to stop."""
        told = 0
        with self.job.log.open("rb") as log:
            log.seek(self.begin)
            while True:
                over = self.over()  # asked before reading, so that its last words are read
                sys.stdout.buffer.write(log.read())
                sys.stdout.flush()
                if over:
                    return
                if signals.received() != told:
                    told = signals.received()
                    self.tell(told)
                time.sleep(POLL)

    def settle(self) -> str:
        """The state of the run after the end of the process, which is written here where the process could not do so."""
        state = standing(self.job)["state"]
        if state in ("done", "pruned", "failed", "preempted", "running"):  # running: somebody else holds the folder
            return state
        if signals.received():  # whatever ended it in haste, it goes on when the sweep does
            return state
        code = self.process.returncode
        stopped = next((signum for signum in signals.STOPPING if code in (-signum, 128 + signum)), None)
        if stopped is not None:
            self.job.run.set_status("preempted", reason=f"{stopped.name}, before anything could be saved")
            return "preempted"
        self.job.run.set_status("failed", reason=f"{_cause(code)}{self._last_words()}; see {self.job.log}")
        return "failed"

    def _last_words(self) -> str:
        with self.job.log.open("rb") as log:
            log.seek(max(self.begin, os.path.getsize(self.job.log) - 4096))
            lines = log.read().decode(errors="replace").split("\n")
        words = [line.rpartition("\r")[2].strip() for line in lines]
        return next((f": {line[:200]}" for line in reversed(words) if line), "")


def _cause(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, as the system does when memory runs out"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _surroundings(lifeline: int) -> dict[str, str]:
    columns = str(shutil.get_terminal_size().columns)  # progress bars as wide as the terminal that shows them
    return {"COLUMNS": columns, **os.environ, "PYTHONUNBUFFERED": "1", "QUADRAT_PARENT": str(lifeline)}


@contextmanager
def attended() -> Iterator[int]:
    """While jobs run: stopping signals are remembered, and what comes out is the pipe that holds the jobs to this process."""
    lifeline, held = os.pipe()
    before = {signum: signal.getsignal(signum) for signum in signals.STOPPING}
    signals.arm()
    try:
        yield lifeline
    except KeyboardInterrupt:  # the second Ctrl-C: nobody waits for anything any more
        raise signals.Stopped(signal.SIGINT) from None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        os.close(lifeline)
        os.close(held)
