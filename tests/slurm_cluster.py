"""A SLURM cluster for tests: started by tests/cluster/start.sh in a folder of its own, asked and told by SLURM's commands."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

SCRIPTS = Path(__file__).parent / "cluster"
PATIENCE = 240.0
"""Seconds to wait for anything on a machine that does much else."""

SETTLING = 3.0
"""Seconds after which a requeued job may begin: a node refuses one that comes back within the second it was revoked in."""

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
"""States that a job does not leave."""

# start.sh within this shell, whose children the daemons are; the end of its input, however it comes, is the end of all
KEEPER = '. "$0/start.sh" "$1" "$2" && echo up && cat >/dev/null; "$0/stop.sh" "$1"; wait'

Found = TypeVar("Found")


class Absent(Exception):
    """There is no cluster here, and why."""


class Cluster:
    """A running cluster; every wait fails with what the cluster has logged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        self.environment = outside | {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        self.over = threading.Event()

    def say(self, *command: str) -> str:
        """What a command prints that knows this cluster; AssertionError unless it ends well."""
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{' '.join(command)}: {said}\n{self.logs()}"
        return said.strip()

    def until(self, what: str, found: Callable[[], Found | None], why: Callable[[], str] | None = None) -> Found:
        """What is found, as soon as it is; if it never is, AssertionError with ``what`` and, where it knows, ``why``."""
        end = time.monotonic() + PATIENCE
        while not (value := found()):
            assert time.monotonic() < end, f"never {what}: {(why or self.logs)()}"
            assert not self.over.wait(0.1), f"the tests have ended before {what}"
        return value

    def logs(self) -> str:
        """The ends of the logs of the controller and the nodes."""
        return ends(sorted((self.folder / "log").glob("[ns]*")))

    # --- jobs ---

    def submit(self, command: str, *options: str) -> str:
        """The number of a job of one command."""
        script = f"#!/bin/bash\nsrun --unbuffered {command}\n"
        fixed = ("sbatch", "--parsable", "--requeue", "--open-mode=append", "--output=%j.out")
        done = subprocess.run(
            [*fixed, *options], env=self.environment, cwd=self.folder, capture_output=True, text=True, input=script
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """All that SLURM says of a job."""
        said = self.say("scontrol", "--oneliner", "show", "job", number)
        return {key: value for key, _, value in (word.partition("=") for word in said.split())}

    def wait(self, number: str, *states: str) -> dict[str, str]:
        """The job once it is in one of these states; AssertionError when it has ended in another."""

        def there() -> dict[str, str] | None:
            job = self.job(number)
            if job["JobState"] in states:
                return job
            assert job["JobState"] not in ENDED, (
                f"job {number} is {job['JobState']}, not {' or '.join(states)}: {said()}"
            )
            return None

        def said() -> str:
            """By all of the job's tasks."""
            job = self.job(number)
            return f"{job}\n{ends(sorted(Path(job['StdOut']).parent.glob(f'{number}*.out')))}\n{self.logs()}"

        return self.until(f"was job {number} {' or '.join(states)}", there, said)

    def again(self, number: str) -> None:
        """See a job requeued, and let it begin now instead of in two minutes."""
        self.wait(number, "PENDING")
        self.over.wait(SETTLING)
        self.say("scontrol", "update", f"jobid={number}", "StartTime=now", "TimeLimit=10")

    def cut_power(self, node: str, number: str) -> None:
        """All of a node ends at once, as seen from outside: its daemon, and the only job that ran there."""
        daemon = int((self.folder / "pid" / node).read_text())
        tasks = self._tasks(number)
        for pid in [daemon, *self._managers(tasks), *tasks]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.say("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def _tasks(self, number: str) -> set[int]:
        """The processes of a job of this cluster."""
        wanted = {f"SLURM_CONF={self.environment['SLURM_CONF']}".encode(), f"SLURM_JOB_ID={number}".encode()}
        pids = set()
        for file in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if wanted <= set(file.read_bytes().split(b"\0")):
                    pids.add(int(file.parent.name))
        return pids

    def _managers(self, pids: set[int]) -> set[int]:
        """The slurmstepd processes that watch over these."""
        parents = set()
        for pid in pids:
            with suppress(OSError):
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                if Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd"):
                    parents.add(parent)
        return parents


def ends(files: Iterable[Path]) -> str:
    """The last lines of some files."""
    return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-2000:]}" for file in files)


@contextmanager
def started(folder: Path, nodes: int) -> Iterator[Cluster]:
    """A cluster that is stopped afterwards, also when this process is killed; Absent says why there is none."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(name, path=path)]
    if missing:
        raise Absent(f"{', '.join(missing)} not found; tests/install.sh installs them where it can")
    command = ["bash", "-c", KEEPER, str(SCRIPTS), str(folder), str(nodes)]
    pipe = subprocess.PIPE
    with (
        (folder.parent / f"{folder.name}.log").open("w+") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, start_new_session=True) as keeper,
    ):
        assert keeper.stdout is not None
        if keeper.stdout.readline() == "up\n":
            yield Cluster(folder)
        else:
            keeper.wait()
            errors.seek(0)
            raise Absent(errors.read())
    assert keeper.returncode == 0, "the cluster does not stop"
