"""The jobs of a sweep as an array of a SLURM cluster."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quadrat import ranks
from quadrat.launchers.base import Draft
from quadrat.sweeps.ledger import Job, Sweep, alive
from quadrat.worker import run_folder

if TYPE_CHECKING:
    import submitit


@dataclass(frozen=True)
class Resources:
    """What one job asks for; jobs that ask for the same go into one array."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int


class Slurm:
    """Hands jobs over and returns at once: SLURM starts them, and starts them again after preemption or a time limit.

    ``nodes``, ``tasks_per_node``, ``gpus_per_node`` and ``cpus_per_task`` are None for what each job's own trainer and
    loader need. ``signal_delay_s`` before its time limit a job is told to save. ``setup``: shell lines before the job,
    ``additional``: any other option of sbatch. ``cluster`` local runs all jobs at once on this machine in the same way.
    """

    def __init__(
        self,
        cluster: str = "slurm",
        *,
        partition: str | None = None,
        qos: str | None = None,
        account: str | None = None,
        constraint: str | None = None,
        timeout_min: int = 240,
        signal_delay_s: int = 120,
        nodes: int | None = None,
        tasks_per_node: int | None = None,
        gpus_per_node: int | None = None,
        cpus_per_task: int | None = None,
        mem_gb: float | None = None,
        array_parallelism: int = 256,
        setup: Sequence[str] = (),
        additional: dict[str, Any] | None = None,
    ) -> None:
        if cluster not in ("slurm", "local"):
            raise ValueError(f"launcher.cluster={cluster}: slurm is one, local tries the same on this machine")
        if cluster == "slurm" and not shutil.which("sbatch"):
            raise ValueError(
                "launcher=slurm: there is no sbatch on this machine; give the command on a login node of the cluster, "
                "or choose launcher=local or launcher=local_gpus"
            )
        self.cluster = cluster
        self.given = Resources(nodes or 0, tasks_per_node or 0, gpus_per_node or 0, cpus_per_task or 0)
        self.general = {"timeout_min": timeout_min, "mem_gb": mem_gb, "stderr_to_stdout": True}
        self.special = {
            "slurm_partition": partition,
            "slurm_qos": qos,
            "slurm_account": account,
            "slurm_constraint": constraint,
            "slurm_signal_delay_s": signal_delay_s,
            "slurm_array_parallelism": array_parallelism,
            "slurm_additional_parameters": {"requeue": True, **(additional or {})},
            f"{cluster}_setup": list(setup) or None,
        }

    def check(self, drafts: Sequence[Draft]) -> None:
        """Raise ValueError for a job whose trainer does not fit the resources that are asked for."""
        for draft in drafts:
            self.resources(draft)

    def run(self, sweep: Sweep, drafts: Sequence[Draft]) -> None:
        """Submit one array for each kind of job and say how to watch and how to cancel it."""
        groups = dict[Resources, list[Job]]()
        for draft in drafts:
            groups.setdefault(self.resources(draft), []).append(draft.job)
        for resources, jobs in groups.items():
            tickets = self._submit(sweep, resources, jobs)
            sweep.submitted(self.cluster, dict(zip((job.key for job in jobs), tickets, strict=True)))
            self._say(tickets)
        print(f"quadrat-report status {sweep.name}   shows how they stand", flush=True)

    def resources(self, draft: Draft) -> Resources:
        """What a job asks for; ValueError when that and its trainer disagree."""
        trainer, given = draft.config.trainer, self.given
        on_gpu = trainer.accelerator in ("gpu", "cuda")
        nodes, devices = trainer.get("num_nodes", 1), self._devices(draft, on_gpu)
        _agree(draft, "nodes", given.nodes, "trainer.num_nodes", nodes)
        _agree(draft, "tasks_per_node", given.tasks_per_node, "trainer.devices", devices)
        return Resources(
            nodes=nodes,
            tasks_per_node=devices,
            gpus_per_node=given.gpus_per_node or (devices if on_gpu else 0),
            cpus_per_task=given.cpus_per_task or 1 + draft.config.data.workers,
        )

    def _devices(self, draft: Draft, on_gpu: bool) -> int:
        devices, known = (
            draft.config.trainer.devices,
            self.given.tasks_per_node or (on_gpu and self.given.gpus_per_node),
        )
        if devices not in ("auto", -1, "-1"):
            return ranks.wanted(devices, draft.config.trainer.accelerator)
        if not known:
            raise ValueError(
                f"{draft.job.label}: trainer.devices={devices} is not known before the job runs; give trainer.devices=<n> "
                f"or launcher.tasks_per_node=<n>"
            )
        return known

    def _submit(self, sweep: Sweep, resources: Resources, jobs: Sequence[Job]) -> list[str]:
        """The tickets of jobs that are now in the queue; ValueError says why they are not."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            executor = self._executor(sweep, resources)
            submitted = executor.map_array(run_folder, [str(job.run.folder) for job in jobs])
        except (FailedJobError, FailedSubmissionError, AssertionError, NameError, RuntimeError) as error:
            raise ValueError(
                f"SLURM did not take {len(jobs)} jobs of the sweep {sweep.name}: {error}\n"
                f"launcher.<option>=<value> changes what is asked for"
            ) from error
        return [job.job_id for job in submitted]

    def _executor(self, sweep: Sweep, resources: Resources) -> submitit.AutoExecutor:
        import submitit

        executor = submitit.AutoExecutor(sweep.submissions, cluster=self.cluster)
        local = self.cluster == "local"  # whose tasks are no ranks: the job starts its own
        executor.update_parameters(
            name=sweep.name,
            nodes=resources.nodes,
            tasks_per_node=1 if local else resources.tasks_per_node,
            gpus_per_node=resources.gpus_per_node or None,
            cpus_per_task=resources.cpus_per_task,
            # what sbatch was told of CPUs and of logs, srun since SLURM 22.05 no longer takes over by itself
            slurm_srun_args=[f"--cpus-per-task={resources.cpus_per_task}", "--open-mode=append"],
            **self.general,
            **self.special,
        )
        return executor

    def _say(self, tickets: Sequence[str]) -> None:
        count = f"{len(tickets)} job{'s' if len(tickets) > 1 else ''}"
        if self.cluster == "local":
            print(f"started {count} on this machine; kill {' '.join(tickets)}   cancels them")
        else:
            array = tickets[0].partition("_")[0]
            print(
                f"submitted {count} as {'array ' if '_' in tickets[0] else ''}{array}; scancel {array}   cancels them"
            )


def _agree(draft: Draft, option: str, given: int, setting: str, value: int) -> None:
    if given and given != value:
        raise ValueError(
            f"{draft.job.label}: launcher.{option}={given}, but {setting}={value}; one process is started for each device of "
            f"each node, so leave launcher.{option} out or make them equal"
        )


def waiting(jobs: Iterable[Job]) -> set[str]:
    """The keys of those jobs that are still in a queue, running or not; ValueError when SLURM does not answer."""
    ticketed = [job for job in jobs if job.ticket]
    local = {job.key for job in ticketed if job.cluster == "local" and alive(int(job.ticket or 0))}
    submitted = {job.ticket: job.key for job in ticketed if job.cluster == "slurm"}
    if not submitted or not shutil.which("squeue"):  # where there is no SLURM nothing of it runs
        return local
    queue = _queue()
    return local | {key for ticket, key in submitted.items() if ticket in queue}


def _queue() -> set[str]:
    """The ids of this user's jobs, `<array>_<task>` for the tasks of an array."""
    try:
        asked = subprocess.run(
            ["squeue", "--me", "--array", "--noheader", "--format=%i"], capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError("SLURM does not say which jobs are in its queue: squeue took more than a minute") from error
    if asked.returncode:
        raise ValueError(f"SLURM does not say which jobs are in its queue: {asked.stderr.strip()}; try again later")
    return set(asked.stdout.split())
