"""One job: a resolved config trained in its run folder, from its beginning or from where it was stopped."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from quadrat import cluster, ranks, resume, signals
from quadrat.configs import build, build_task, friendly, message, quiet, settings
from quadrat.runs import InUse, Run, here, load_weights, read_checkpoint, same_schema

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

    from quadrat.data.module import DataModule
    from quadrat.tasks.base import Task


def run_frozen(folder: str) -> int:
    """The job whose config lies in a run folder; the exit code is 0, 128 + a signal's number, or 1 with the reason printed."""
    run = Run.open(folder)
    config = run.config()
    config.paths.run = str(run.folder)
    with friendly(config):
        run_job(config)
    return 0


def run_job(config: DictConfig) -> float | None:
    """Train in as many processes as the config asks for; returns the best value of the monitored metric."""
    if config.replay is not None:
        from quadrat.replay import replay

        replay(config.replay)
        return None
    count = ranks.wanted(config.trainer.devices, config.trainer.accelerator)
    if ranks.placed() or count == 1:
        return train(config)
    if config.trainer.get("num_nodes", 1) > 1:
        raise ValueError(
            f"trainer.num_nodes={config.trainer.num_nodes}: start every node's processes with "
            f"`torchrun --nnodes ... --nproc-per-node {count} -m quadrat.train ...`, or use launcher=slurm"
        )
    return _train_in_several(config, count)


def _train_in_several(config: DictConfig, count: int) -> float | None:
    run = Run(config.paths.run)
    if _done(run, config):
        return report(run)
    with run.locked():
        run.save_config(config)
    code = ranks.start(run.folder, count)
    if code and run.status["state"] in ("new", "queued", "running"):
        run.set_status("failed", reason=f"a rank ended with exit code {code}")
    if code:
        sys.exit(code)
    return _best(run)


def train(config: DictConfig) -> float | None:
    """This process's share of a job, which is all of it for one process."""
    run = Run(config.paths.run)
    if config.resume.mode == "never" and cluster.restarted():
        config.resume.mode = "auto"  # anew once, not whenever the job is requeued
    if _done(run, config):
        return report(run) if ranks.rank() == 0 else None
    resume.check(config.resume)
    with _recorded(run):
        signals.leave_if_asked()
        data = build(config.data)
        signals.leave_if_asked()
        task = _seeded_task(config, data)
        task.check_monitor(config.monitor)
        progress: dict[str, Any] = {}
        with _held(run, progress) if ranks.rank() == 0 else nullcontext():
            return _fit(config, run, data, task, progress)


def _done(run: Run, config: DictConfig) -> bool:
    """Has the run been trained for as long as it is asked to be?"""
    status = run.status
    if status["state"] != "done" or config.resume.mode == "never":
        return False
    done = long_enough(status, config.trainer)
    if done and ranks.rank() == 0:
        print("this run is finished already; more: epochs=<n>, anew: resume.mode=never")
    return done


def long_enough(status: dict[str, Any], trainer: DictConfig) -> bool:
    """Has a finished run been trained for as long as is asked now?"""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps or -1
    return 0 < epochs <= status["epochs"] or 0 < steps <= status["steps"]


@contextmanager
def _held(run: Run, progress: dict[str, Any]) -> Iterator[None]:
    with run.locked(), run.alive(progress), _log_file(run.folder / "train.log"):
        yield


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """What the libraries have to say goes into the run folder."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


@contextmanager
def _recorded(run: Run) -> Iterator[None]:
    """Leave a true record of how the job ended, here and in Weights & Biases, and have a stopped one started again."""
    try:
        yield
    except InUse:
        raise
    except signals.Stopped as stop:
        if ranks.rank() == 0:
            _end(run, "preempted", int(stop.code or 0), reason=str(stop))
            print(f"\nstopped by {stop}; the same command goes on from step {run.status.get('step', 0)}")
            instead = cluster.requeue(stop.signum)
            if instead is not None:
                sys.exit(instead)
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit) and signals.received() == signal.SIGINT:
            _end(run, "preempted", 130, reason="SIGINT, twice: nothing was saved on leaving")
            raise signals.Stopped(signal.SIGINT) from None
        _end(
            run,
            "failed",
            1,
            reason=f"{type(error).__name__}: {message(error) if isinstance(error, Exception) else error}",
        )
        raise


def _end(run: Run, state: str, code: int, **more: Any) -> None:
    if ranks.rank() != 0:
        return
    if run.config_file.exists():  # what was wrong from the first leaves no folder
        try:
            run.set_status(state, **more)
        except OSError as error:
            print(f"cannot write {run.status_file} ({error.strerror})", file=sys.stderr)
    tracking = sys.modules.get("quadrat.callbacks.tracking")
    if tracking is not None:
        tracking.close(state if code else "done", code)  # to W&B, a pruned run is a finished one


def _seeded_task(config: DictConfig, data: DataModule) -> Task:
    """The task with initial weights that are a function of the seed."""
    from lightning.pytorch import seed_everything

    seed_everything(config.seed, verbose=False)
    return build_task(config, data)


def _fit(config: DictConfig, run: Run, data: DataModule, task: Task, progress: dict[str, Any]) -> float | None:
    start = resume.starting_point(config.resume, run)
    _refuse_other_schema(start, task)
    if start.weights is not None:
        load_weights(task.model, start.weights, may_lack=task.model.staged)
    trainer = _trainer(config, run, progress, start)
    if trainer.is_global_zero:
        _begin(config, run, trainer, start)
    for logger in trainer.loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))  # pyright: ignore[reportArgumentType]
    signals.leave_if_asked()
    with _loader_explained():
        trainer.fit(task, data, ckpt_path=start.checkpoint)
    if not trainer.is_global_zero:
        return None
    if start.checkpoint == run.new and run.new.exists():  # nothing was left to do, so no other has come after it
        run.name_newest()
    _write_results(run, trainer, config)
    state, why = _ending(trainer)
    _end(run, state, 0, epochs=trainer.current_epoch, steps=trainer.global_step, best=_best(run), **why)
    return report(run)


def _ending(trainer: Trainer) -> tuple[str, dict[str, str]]:
    """Done, or pruned and why."""
    from quadrat.callbacks.prune import Prune

    reasons = [one.reason for one in trainer.callbacks if isinstance(one, Prune) and one.reason]  # pyright: ignore
    return ("pruned", {"reason": reasons[0]}) if reasons else ("done", {})


@contextmanager
def _loader_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            f"a loader worker was killed ({error}), most often because memory ran out: ask for fewer with data.workers=<n>; "
            f"the same command goes on from the last checkpoint"
        ) from error


def _refuse_other_schema(start: resume.Start, task: Task) -> None:
    path = start.checkpoint or start.weights
    if path is not None:
        same_schema(read_checkpoint(path, mmap=True)["schema"], task.schema, path)


def _begin(config: DictConfig, run: Run, trainer: Trainer, start: resume.Start) -> None:
    """Say what is begun, freeze its config, and bring the log to where the checkpoint is."""
    from quadrat.callbacks.csv_log import CsvLog

    aside = run.set_aside() if config.resume.mode == "never" else None
    print(start.why + (f"; what was there is in {aside}" if aside else ""))
    goes_on = start.checkpoint is not None and start.checkpoint.parent == run.folder
    if goes_on:
        for change in resume.changes(config, run):
            print(change)
    run.save_config(config)
    known = {"id": run.folder.name.rsplit("-")[-1], "command": sys.argv[1:], "begun_from": _origin(start, run)}
    run.set_status("running", **known, **here(), **resume.versions())
    rows = read_checkpoint(start.checkpoint, mmap=True)["rows"] if goes_on and start.checkpoint else 0
    for logger in trainer.loggers:
        if isinstance(logger, CsvLog):
            logger.cut_back(rows)


def _origin(start: resume.Start, run: Run) -> str | None:
    """The lineage of a run that began from another one, kept when it is resumed."""
    path = start.weights or start.checkpoint
    return run.status.get("begun_from") if path is None or path.parent == run.folder else str(path)


def _trainer(config: DictConfig, run: Run, progress: dict[str, Any], start: resume.Start) -> Trainer:
    from lightning.pytorch.callbacks import LambdaCallback

    from quadrat.callbacks.agreement import SameConfig
    from quadrat.callbacks.checkpoints import AtomicCheckpointIO
    from quadrat.callbacks.nan_guard import NanGuard

    quiet()
    shown = [name for name in config.callbacks if name != "progress" or config.trainer.enable_progress_bar]
    callbacks = [build(config.callbacks[name]) for name in shown if config.callbacks[name]]
    callbacks.append(NanGuard(run.folder, config.trainer.on_nan))
    callbacks.append(SameConfig(settings(config) | {"the start": start.why}))
    callbacks.append(LambdaCallback(on_train_batch_end=lambda trainer, *_: progress.update(_standing(trainer))))
    if config.sweep.get("trial"):
        callbacks.append(_prune(config))
    settled: Any = OmegaConf.to_container(config.trainer, resolve=True)
    trainer = build(
        {name: value for name, value in settled.items() if name != "on_nan"},  # what happens at a NaN is ours
        callbacks=callbacks,
        logger=[build(logger) for logger in config.logger.values() if logger],
        plugins=[AtomicCheckpointIO(), ranks.environment()],
        default_root_dir=str(run.folder),
    )
    _leave_signals_to_us(trainer)
    return trainer


def _prune(config: DictConfig) -> Callback:
    from quadrat.callbacks.prune import Prune

    journal = Path(config.paths.logs) / "sweeps" / config.sweep.name / "study.journal"
    return Prune(journal, config.sweep.trial.number, build(config.sweep.trial.pruner), config.monitor)


def _standing(trainer: Trainer) -> dict[str, Any]:
    return {"epoch": trainer.current_epoch, "step": trainer.global_step, "max_epochs": trainer.max_epochs}


def _leave_signals_to_us(trainer: Trainer) -> None:
    """Lightning's handler of SIGTERM speaks to the other ranks from within the handler, which can hang them all, and with
    several ranks it asks the device at every step; `Checkpoints` agrees on stopping instead."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def _write_results(run: Run, trainer: Trainer, config: DictConfig) -> None:
    from quadrat.callbacks.checkpoints import BestCheckpoint

    best = next((one for one in trainer.callbacks if isinstance(one, BestCheckpoint)), None)  # pyright: ignore
    results = {"best": None, "at_best": {}, "last": {}}
    if best:
        results = {"best": best.best, "at_best": best.at_best, "last": best.values}
    run.write_json(run.metrics_file, {"monitor": config.monitor, "epochs": trainer.current_epoch, **results})


def _best(run: Run) -> float | None:
    return json.loads(run.metrics_file.read_text())["best"]


def report(run: Run) -> float | None:
    """Say where everything is, and return the number the run is chosen by."""
    results: dict[str, Any] = json.loads(run.metrics_file.read_text())
    shown = {name: value for name, value in results["last"].items() if name.count("/") == 1}
    print("\n" + "\n".join(f"  {name:<18} {value:.3f}" for name, value in shown.items()))
    if results["best"] is not None:
        print(f"\n  best {results['monitor']}: {results['best']:.3f}")
    places = {"run folder": run.folder, "metrics": run.log, "pictures": run.pictures / "latest.png"}
    print("\n" + "\n".join(f"  {name:<12}{place}" for name, place in places.items() if place.exists()))
    print(f"\n  quadrat-evaluate run={run.folder}\n  quadrat-predict run={run.folder} source=<picture or folder>\n")
    return results["best"]
