"""What a job asks of the cluster that runs it: to be started again after it has been stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess


def requeue(signum: int) -> int | None:
    """Have the job started again, which has just been saved because of a signal; returns the exit code that this takes.

    Nothing is asked for after Ctrl-C, when the terminal is gone, outside a cluster, or when the user has cancelled the job.
    """
    if signum in (signal.SIGINT, signal.SIGHUP):
        return None
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

        return LOCAL_REQUEUE_RETURN_CODE
    if "SLURM_JOB_ID" in os.environ:
        _requeue_by_slurm(_slurm_job())
    return None


def restarted() -> bool:
    """Has SLURM started this job before?"""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _slurm_job() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]


def _requeue_by_slurm(job: str) -> None:
    """A job that exits within its grace time is over for SLURM; one that is cancelled must stay so."""
    state = _say("scontrol", "--oneliner", "show", "job", job)
    if re.search(r"JobState=RUNNING\b", state):
        print(f"asking SLURM to start job {job} again: {_say('scontrol', 'requeue', job) or 'done'}")


def _say(*command: str) -> str:
    """What a command prints, or why it could not be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout + done.stderr).strip()
