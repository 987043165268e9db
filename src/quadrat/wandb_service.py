"""W&B's service process and its key: what the log of a run and the report of a sweep both need to know."""

from __future__ import annotations

import netrc
import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlparse

SECONDS = 10.0
"""How long to wait for the service itself, should it no longer answer."""


def has_key() -> bool:
    """Is there an API key in the environment, or in the netrc file where `wandb login` puts it?"""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def end_service() -> None:
    """So that the next run of this process begins with settings of its own, and the process does not wait at its end."""
    import wandb

    if wandb.run is not None:  # a run of somebody else, in a notebook
        return
    process = service_process()
    with suppress(Exception, SystemExit):
        within(SECONDS, wandb.teardown)
    if process is not None:
        process.kill()  # ended already, unless it hangs
        process.wait()


def service_process() -> subprocess.Popen[bytes] | None:
    """The `wandb-core` that this process has started, which is no part of wandb's interface."""
    from wandb.sdk import wandb_setup

    try:
        return wandb_setup.singleton()._connection._proc._process  # pyright: ignore[reportOptionalMemberAccess]
    except AttributeError:
        return None


def within(seconds: float, work: Callable[[], None]) -> None:
    """Do it in a thread of its own; TimeoutError after ``seconds``."""
    failed: list[BaseException] = []

    def attempt() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"W&B's service did not answer within {seconds:.0f} s")
    if failed:
        raise failed[0]
