"""Jobs as processes here, on GPUs, and on a cluster that is not there: stubs of SLURM's commands say what they were given."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import toys
from quadrat.configs import compose
from quadrat.launchers.local_gpus import LocalGpus, visible
from quadrat.launchers.slurm import Resources, Slurm, waiting
from quadrat.runs import Run
from quadrat.sweeps.ledger import Job, Sweep
from toys import attempts, drafted, runs, states, toy, until

GPUS = {"_target_": "quadrat.launchers.local_gpus.LocalGpus"}
SLURM = {"_target_": "quadrat.launchers.slurm.Slurm"}


@pytest.fixture(autouse=True)
def pretending(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.pretending(monkeypatch)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put a shell script in front of the PATH; what it writes to $SAID lies in the file that is returned."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, script: str) -> Path:
        said = folder / f"{name}.said"
        (folder / name).write_text(f"#!/bin/sh\nSAID={said}\n{script}\n")
        (folder / name).chmod(0o755)
        return said

    return make


# --- local ---


def test_local_shows_and_keeps_what_jobs_print(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    toy(tmp_path, "seed=0,1")
    said = capfd.readouterr().out
    assert (
        said.index("1 of 2: seed=0")
        < said.index("trained seed=0")
        < said.index("2 of 2")
        < said.index("trained seed=1")
    )
    assert sorted(log.read_text() for log in tmp_path.glob("sweeps/*/jobs/*.log")) == [
        "trained seed=0\n",
        "trained seed=1\n",
    ]


def test_local_log_keeps_every_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETEND", "print('first'); os._exit(1)")
    toy(tmp_path, "seed=0")
    monkeypatch.setenv("PRETEND", "print('second')")
    toy(tmp_path, "seed=0", "sweep.retry=failed")
    (log,) = tmp_path.glob("sweeps/*/jobs/*.log")
    assert log.read_text().split() == ["first", "second", "trained", "seed=0"]
    assert "reason" not in runs(tmp_path)["seed=0"].status


# --- GPUs of this machine ---

TOGETHER = """
(run.folder / "started").touch()
for _ in range(1000):
    if len(list(run.folder.parent.glob("*/started"))) >= 2:
        break
    time.sleep(0.01)
else:
    sys.exit("nobody else came")
"""
"""A job that goes on once another one has started too."""


def seen(logs: Path) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES of each job."""
    return {label: (run.folder / "attempts").read_text().split()[1] for label, run in runs(logs).items()}


def test_gpus_one_job_on_each_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETEND", TOGETHER)
    toy(tmp_path, "seed=0,1", gpus=[3, 5], **GPUS)
    assert states(tmp_path) == {"seed=0": "done", "seed=1": "done"}
    assert sorted(seen(tmp_path).values()) == ["3", "5"]


def test_gpus_never_more_jobs_than_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = """
held = run.folder.parent / os.environ["CUDA_VISIBLE_DEVICES"]
held.mkdir()  # fails where another job holds the same GPU
time.sleep(0.1)
held.rmdir()
"""
    monkeypatch.setenv("PRETEND", alone)
    toy(tmp_path, "seed=0,1,2,3,4", gpus=[0, 1], **GPUS)
    assert set(states(tmp_path).values()) == {"done"}
    assert set(seen(tmp_path).values()) == {"0", "1"}


def test_gpus_named_twice_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETEND", TOGETHER)
    toy(tmp_path, "seed=0,1", gpus=[7, 7], **GPUS)
    assert states(tmp_path) == {"seed=0": "done", "seed=1": "done"}
    assert seen(tmp_path) == {"seed=0": "7", "seed=1": "7"}


def test_gpus_jobs_of_several_sizes(tmp_path: Path) -> None:
    toy(tmp_path, "trainer.devices=1,2,3", gpus=[0, 1, 2], **GPUS)
    assert {label: len(gpus.split(",")) for label, gpus in seen(tmp_path).items()} == {
        "devices=1": 1,
        "devices=2": 2,
        "devices=3": 3,
    }


def test_gpus_as_many_as_given_for_a_job_that_takes_what_it_sees(tmp_path: Path) -> None:
    toy(tmp_path, "trainer.devices=auto", gpus=[4, 4, 6], gpus_per_job=2, **GPUS)
    assert list(seen(tmp_path).values()) == ["4,6"]


def test_gpus_crash_ends_only_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRETEND", TOGETHER + "\nif label == 'seed=1': os.kill(os.getpid(), 9)")
    toy(tmp_path, "seed=0,1,2", gpus=[0, 1], **GPUS)
    assert states(tmp_path) == {"seed=0": "done", "seed=1": "failed", "seed=2": "done"}


def test_gpus_says_what_starts_and_ends(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETEND", "if label == 'seed=1': os._exit(1)")
    toy(tmp_path, "seed=0,1", gpus=[0], **GPUS)
    said = re.findall(r"^(started|done|failed) +(\S+)", capfd.readouterr().out, flags=re.MULTILINE)
    assert said == [("started", "seed=0"), ("done", "seed=0"), ("started", "seed=1"), ("failed", "seed=1")]


def test_gpus_stopped_sweep_stops_all_its_jobs(tmp_path: Path) -> None:
    both = toys.UNTIL_STOPPED.replace('label == "seed=1"', 'label != "seed=2"')
    command = [sys.executable, toys.__file__, tmp_path, "seed=0,1,2", f"launcher._target_={GPUS['_target_']}"]
    sweep = subprocess.Popen(
        [*command, "launcher.gpus=[0,1]"], env={**os.environ, "PRETEND": both}, stdout=subprocess.PIPE, text=True
    )
    until(lambda: list(states(tmp_path).values()).count("running") == 2, lambda: sweep.poll() is None)
    sweep.terminate()
    said, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 143
    assert "interrupted: 0 of 3 jobs are done" in said
    assert states(tmp_path) == {"seed=0": "preempted", "seed=1": "preempted", "seed=2": "queued"}


def test_gpus_none() -> None:
    with pytest.raises(ValueError, match=r"found no GPU .* launcher=local "):
        LocalGpus(gpus=[])


@pytest.mark.parametrize(
    ("devices", "per_job", "says"),
    [(2, 1, r"trainer\.devices=2, but launcher\.gpus_per_job=1"), (3, None, r"needs 3 GPUs, there are 2 \(0, 1\)")],
)
def test_gpus_job_that_does_not_fit(devices: int, per_job: int | None, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        toy(tmp_path, f"trainer.devices={devices}", gpus=[0, 1], gpus_per_job=per_job, **GPUS)
    assert not runs(tmp_path), "nothing was frozen"


@pytest.mark.parametrize(("named", "gpus"), [("", []), ("-1", []), ("2", ["2"]), ("0, GPU-8a3f", ["0", "GPU-8a3f"])])
def test_visible_named_by_environment(named: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible() == gpus


def test_visible_listed_by_driver(command: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    command("nvidia-smi", "printf 'GPU 0: H200 (UUID: a)\\n  MIG 1g Device 0: (UUID: b)\\nGPU 1: H200 (UUID: c)\\n'")
    assert visible() == ["0", "1"]


# --- SLURM ---


@pytest.fixture
def cluster(command: Callable[[str, str], Path]) -> Path:
    """What sbatch was given; each submission gets the next number from 40 on."""
    command("srun", "")
    command("squeue", "")
    return command("sbatch", 'cat "$1" >>$SAID; n=$(grep -c "#!/bin/bash" $SAID); echo Submitted batch job $((39 + n))')


def options(text: str) -> list[dict[str, str]]:
    """The #SBATCH lines of each submission."""
    scripts = [part for part in text.split("#!/bin/bash") if part.strip()]
    return [dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, flags=re.MULTILINE)) for script in scripts]


def test_slurm_submits_one_array_and_returns(tmp_path: Path, cluster: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcomes = toy(
        tmp_path, "seed=0,1,2", "sweep.name=mine", partition="gpu", timeout_min=30, array_parallelism=2, **SLURM
    )
    (asked,) = options(cluster.read_text())
    assert asked["array"] == "0-2%2"
    assert asked["partition"] == "gpu"
    assert asked["time"] == "30"
    assert asked["signal"] == "USR2@120"
    assert asked["requeue"] == ""
    assert asked["open-mode"] == "append"
    assert asked["job-name"] == "mine"
    assert (asked["nodes"], asked["ntasks-per-node"], asked["cpus-per-task"]) == ("1", "1", "1")
    assert not {"gpus-per-node", "account", "qos", "constraint", "mem"} & set(asked)
    assert states(tmp_path) == {"seed=0": "queued", "seed=1": "queued", "seed=2": "queued"}
    assert attempts(tmp_path) == {"seed=0": 0, "seed=1": 0, "seed=2": 0}
    assert [outcome.return_value for outcome in outcomes] == [None] * 3
    said = capfd.readouterr().out
    assert "submitted 3 jobs as array 40; scancel 40" in said
    assert "quadrat-report status mine" in said
    jobs = Sweep(tmp_path / "sweeps" / "mine").jobs().values()
    assert [(job.cluster, job.ticket) for job in jobs] == [("slurm", f"40_{task}") for task in range(3)]


def test_slurm_logs_where_the_ledger_says(tmp_path: Path, cluster: Path) -> None:
    toy(tmp_path, "seed=0,1", "sweep.name=mine", **SLURM)
    pattern = re.search(r"srun .*--output (\S+)", cluster.read_text())
    assert pattern
    (first, _) = Sweep(tmp_path / "sweeps" / "mine").jobs().values()
    assert pattern[1].replace("%A", "40").replace("%a", "0").replace("%t", "0") == str(first.log)


def test_slurm_every_option(tmp_path: Path, cluster: Path) -> None:
    more = {"setup": ["module load cuda", "export A=1"], "additional": {"gres": "gpu:a100:1"}, "mem_gb": 16}
    toy(tmp_path, "seed=0", qos="low", account="me", constraint="a100", signal_delay_s=60, **more, **SLURM)
    text = cluster.read_text()
    (asked,) = options(text)
    assert "array" not in asked  # one job is none
    assert (asked["qos"], asked["account"], asked["constraint"]) == ("low", "me", "a100")
    assert (asked["signal"], asked["gres"], asked["mem"]) == ("USR2@60", "gpu:a100:1", "16GB")
    assert text.index("module load cuda\nexport A=1") < text.index("srun")
    assert re.search(r"srun .*--cpus-per-task=1 --open-mode=append", text)


def test_slurm_jobs_of_several_sizes_in_one_array_each(tmp_path: Path, cluster: Path) -> None:
    toy(tmp_path, "trainer.devices=1,2", "seed=0,1", "trainer.accelerator=gpu", "data.workers=3", **SLURM)
    one, two = options(cluster.read_text())
    assert (one["ntasks-per-node"], one["gpus-per-node"], one["cpus-per-task"], one["array"][:3]) == (
        "1",
        "1",
        "4",
        "0-1",
    )
    assert (two["ntasks-per-node"], two["gpus-per-node"], two["cpus-per-task"], two["array"][:3]) == (
        "2",
        "2",
        "4",
        "0-1",
    )
    (sweep,) = Sweep.all(tmp_path)
    assert sorted(str(job.ticket) for job in sweep.jobs().values()) == ["40_0", "40_1", "41_0", "41_1"]


SIZES = {
    "one": ([], {}, Resources(1, 1, 0, 1)),
    "gloo": (["trainer.devices=2"], {}, Resources(1, 2, 0, 1)),
    "gpus": (["trainer.devices=4", "trainer.accelerator=gpu"], {}, Resources(1, 4, 4, 1)),
    "nodes": (["trainer.num_nodes=2", "trainer.devices=2"], {"nodes": 2}, Resources(2, 2, 0, 1)),
    "auto": (["trainer.devices=auto", "trainer.accelerator=gpu"], {"gpus_per_node": 8}, Resources(1, 8, 8, 1)),
    "all": (["trainer.devices=-1"], {"tasks_per_node": 3, "cpus_per_task": 5}, Resources(1, 3, 0, 5)),
}


@pytest.mark.parametrize(("overrides", "given", "wanted"), SIZES.values(), ids=SIZES)
def test_slurm_resources(
    overrides: list[str], given: dict[str, Any], wanted: Resources, tmp_path: Path, cluster: Path
) -> None:
    (draft,) = drafted(tmp_path, "seed=0")
    draft.config.merge_with(toys.compose(overrides, tmp_path))
    assert Slurm(**given).resources(draft) == wanted


REFUSED = {
    "nodes": ([], {"nodes": 2}, r"launcher\.nodes=2, but trainer\.num_nodes=1"),
    "tasks": (["trainer.devices=2"], {"tasks_per_node": 4}, r"launcher\.tasks_per_node=4, but trainer\.devices=2"),
    "auto": (["trainer.devices=auto"], {}, r"not known before the job runs; give trainer\.devices=<n>"),
}


@pytest.mark.parametrize(("overrides", "given", "says"), REFUSED.values(), ids=REFUSED)
def test_slurm_resources_disagree(
    overrides: list[str], given: dict[str, Any], says: str, tmp_path: Path, cluster: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        toy(tmp_path, "seed=0,1", *overrides, **given, **SLURM)
    assert not cluster.exists(), "nothing was submitted"
    assert not runs(tmp_path), "nothing was frozen"


def test_slurm_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"no sbatch on this machine; .*launcher=local"):
        Slurm()


def test_slurm_unknown_cluster() -> None:
    with pytest.raises(ValueError, match=r"launcher\.cluster=pbs: slurm is one"):
        Slurm(cluster="pbs")


def test_slurm_refusal_is_said(tmp_path: Path, cluster: Path, command: Callable[[str, str], Path]) -> None:
    command("sbatch", "echo 'error: invalid partition specified: none' >&2; exit 1")
    with pytest.raises(ValueError, match=r"(?s)did not take 2 jobs .*invalid partition.*launcher\.<option>"):
        toy(tmp_path, "seed=0,1", partition="none", **SLURM)
    assert states(tmp_path) == {"seed=0": "queued", "seed=1": "queued"}


def test_slurm_again_leaves_what_is_in_the_queue(
    tmp_path: Path, cluster: Path, command: Callable[[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    toy(tmp_path, "seed=0,1,2", **SLURM)
    runs(tmp_path)["seed=0"].set_status("preempted", reason="SIGUSR2")
    command("squeue", "printf '40_0\\n40_2\\n7\\n'")
    outcomes = toy(tmp_path, "seed=0,1,2", **SLURM)
    assert "2 under way, 1 to run" in capfd.readouterr().out
    assert [outcome.return_value for outcome in outcomes] == [None] * 3, "a preempted one that will go on is no failure"
    (sweep,) = Sweep.all(tmp_path)
    assert {job.label: job.ticket for job in sweep.jobs().values()} == {
        "seed=0": "40_0",
        "seed=1": "41",
        "seed=2": "40_2",
    }


def test_slurm_silent_queue_stops_the_launch(
    tmp_path: Path, cluster: Path, command: Callable[[str, str], Path]
) -> None:
    """Submitting twice what still waits would be worse than asking again later."""
    toy(tmp_path, "seed=0", **SLURM)
    command("squeue", "echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1")
    with pytest.raises(ValueError, match="Unable to contact slurm controller; try again later"):
        toy(tmp_path, "seed=0", **SLURM)
    assert len(options(cluster.read_text())) == 1


def test_slurm_then_local_runs_what_the_queue_has_lost(tmp_path: Path, cluster: Path) -> None:
    toy(tmp_path, "seed=0", **SLURM)
    toy(tmp_path, "seed=0")
    assert states(tmp_path) == {"seed=0": "done"}
    (job,) = Sweep.all(tmp_path)[0].jobs().values()
    assert (job.ticket, job.log.parent.name) == (None, "jobs")
    assert "trained" in job.log.read_text()


def test_slurm_local_cluster_leaves_the_ranks_to_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of submitit's local executor are no ranks; each would take itself for the whole job."""
    asked: dict[str, Any] = {}

    class Executor:
        def __init__(self, folder: Path, cluster: str) -> None:
            asked["cluster"] = cluster

        def update_parameters(self, **parameters: Any) -> None:
            asked.update(parameters)

        def map_array(self, function: object, folders: list[str]) -> list[SimpleNamespace]:
            return [SimpleNamespace(job_id=str(os.getpid())) for _ in folders]

    monkeypatch.setattr("submitit.AutoExecutor", Executor)
    toy(tmp_path, "trainer.devices=2", "seed=0", cluster="local", **SLURM)
    assert (asked["cluster"], asked["tasks_per_node"]) == ("local", 1)


def test_waiting_nothing_asked_without_tickets(command: Callable[[str, str], Path], tmp_path: Path) -> None:
    asked = command("squeue", "echo asked >$SAID")
    assert waiting(draft.job for draft in drafted(tmp_path, "seed=0")) == set()
    assert not asked.exists()


@pytest.mark.parametrize(("pid", "waits"), [(os.getpid(), True), (2**22 + 1, False)], ids=["alive", "gone"])
def test_waiting_for_processes_of_this_machine(pid: int, waits: bool, tmp_path: Path) -> None:
    job = Job("a", "a", (), "0", Run(tmp_path), tmp_path / "log", "local", str(pid))
    assert waiting([job]) == ({"a"} if waits else set())


# --- by Hydra ---


@pytest.mark.parametrize("launcher", ["local_gpus", pytest.param("slurm", marks=pytest.mark.slow)])
def test_launcher_config_alone_makes_a_sweep_of_one(launcher: str, tmp_path: Path, cluster: Path) -> None:
    gpus = ["launcher.gpus=[0]"] if launcher == "local_gpus" else ["launcher.partition=some"]
    done = subprocess.run(
        [Path(sys.executable).parent / "quadrat-train", f"launcher={launcher}", *gpus, "seed=-1", "trainer.devices=7"],
        env={**os.environ, "QUADRAT_LOGS": str(tmp_path / "logs"), "CUDA_VISIBLE_DEVICES": "0"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    if launcher == "slurm":
        assert done.returncode == 0, done.stderr
        assert "submitted 1 job as 40; scancel 40" in done.stdout
        assert states(tmp_path / "logs") == {"seed=-1 devices=7": "queued"}
    else:
        assert done.returncode == 1
        assert "needs 7 GPUs, there is 1 (0); trainer.devices=1 fits" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("launcher", ["local", "local_gpus", "slurm"])
def test_launcher_is_no_part_of_a_run(launcher: str) -> None:
    chosen, usual = compose("train", [f"launcher={launcher}", "sweep.name=any"]), compose("train")
    assert chosen.paths.run == usual.paths.run


def test_wandb_groups_by_sweep_and_names_by_job() -> None:
    config = compose("train", ["logger=wandb", "sweep.name=weights", "sweep.job=rpn_box\\=1"])
    assert (config.logger.wandb.group, config.logger.wandb.name) == ("weights", "rpn_box=1")
    assert compose("train", ["logger=wandb"]).logger.wandb.group is None


# --- for real ---


@pytest.mark.slow
def test_real_job_preempted_on_the_local_cluster(tmp_path: Path) -> None:
    """The way through submitit where there is no SLURM: told to stop, the job saves, is started again and goes on."""
    logs, steps = tmp_path / "logs", 4 * 6
    tiny = ("data.source.count=8", "data.batch_size=2", "epochs=6", "model.neck.channels=16", "model.layers.hidden=32")
    with (tmp_path / "said").open("w") as said:  # no pipe, which would stay open as long as the job
        subprocess.run(
            [
                *(Path(sys.executable).parent / "quadrat-train", "launcher=slurm", "launcher.cluster=local"),
                *(*tiny, "trainer.log_every_n_steps=1", "trainer.check_val_every_n_epoch=6"),
            ],
            env={**os.environ, "QUADRAT_LOGS": str(logs), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            stdout=said,
            stderr=said,
            timeout=100,
            check=True,
        )
    (job,) = Sweep.all(logs)[0].jobs().values()
    until(lambda: bool(trained(job.run)), lambda: bool(waiting([job])), job.log.read_text)
    os.kill(job.run.status["pid"], signal.SIGUSR2)
    until(lambda: not waiting([job]))
    printed = job.log.read_text()
    assert job.run.status["state"] == "done", printed
    assert "stopped by SIGUSR2" in printed
    assert "resuming from step" in printed
    assert trained(job.run) == list(range(steps)), "every step once"


def trained(run: Run) -> list[int]:
    """The steps in the log of a run."""
    if not run.log.exists():
        return []
    with run.log.open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get("train/total")]
