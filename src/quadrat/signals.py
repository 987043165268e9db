"""Signals only set a flag; the step boundary acts on it, on all ranks together.

Nothing but the standard library is imported here, so that the handlers stand before the slow imports begin.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
"""Preemption and scancel, the user signals that announce a time limit, Ctrl-C, and the end of the terminal."""

_received = 0


class Stopped(SystemExit):
    """The run was asked to stop by a signal and did so with everything saved; the exit code is the shell's, 128 + signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return signal.Signals(self.signum).name


def arm() -> None:
    """From now on a stopping signal is remembered; a second Ctrl-C interrupts at once. What nohup ignores stays ignored."""
    for signum in STOPPING:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _remember)


def _remember(signum: int, frame: FrameType | None) -> None:
    global _received
    _received = max(_received, signum)
    if signum == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def received() -> int:
    """The number of the signal that asks this process to stop, 0 if none does; of several, SIGTERM."""
    return _received


def leave_if_asked() -> None:
    """For the time before and after the steps, where nothing is to be saved: raise Stopped if a signal has come."""
    if _received:
        raise Stopped(_received)


def forget() -> None:
    """Start anew, as the next job in the same process does."""
    global _received
    _received = 0


def arm_loader_worker() -> None:
    """Stop at the trainer's word only: a cluster signals every process, and a lost batch would break the trainer's last step."""
    for signum in STOPPING:
        if signum != signal.SIGTERM:
            signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True, name="signals").start()


def _obey(parent: int) -> None:
    """A handler does not learn who sent a signal; one who waits for it does."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as torch's own workers do: any other code is an error to the trainer


def die_with(pipe: int) -> None:
    """End this process, wherever it is, when the other end of ``pipe`` closes: its parent is gone."""

    def watch() -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent").start()
