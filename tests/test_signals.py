"""Who may stop a loader worker, and what a signal does before anybody looks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

WORKER = """
import os, sys, time
from quadrat import signals
signals.arm()
signals.arm_loader_worker()
print("ready", flush=True)
time.sleep(60)
"""
STRANGER = "import os, sys; os.kill(int(sys.argv[1]), int(sys.argv[2]))"


@pytest.fixture
def worker() -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_loader_worker_heeds_no_stranger(worker: subprocess.Popen[str], signum: int) -> None:
    for _ in range(3):
        subprocess.run([sys.executable, "-c", STRANGER, str(worker.pid), str(signum)], check=True)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.5)


def test_loader_worker_ends_at_the_trainers_word(worker: subprocess.Popen[str]) -> None:
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0


def test_received_keeps_the_strongest_signal() -> None:
    code = """
import os, signal
from quadrat import signals
signals.arm()
for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2):
    os.kill(os.getpid(), signum)
print(signals.received())
try:
    signals.leave_if_asked()
except signals.Stopped as stop:
    print(stop, stop.code)
signals.forget()
signals.leave_if_asked()
os.kill(os.getpid(), signal.SIGINT)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("at once")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.split("\n")[:3] == [str(int(signal.SIGTERM)), "SIGTERM 143", "at once"]
