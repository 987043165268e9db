"""quadrat-train: a config in, a run folder out. The same command again goes on where the run stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from quadrat.configs import build, build_task, launch, quiet, run_id
from quadrat.runs import Run, read_checkpoint, same_classes

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from quadrat.data.module import DataModule
    from quadrat.tasks.base import Task


def main() -> None:
    """The console script."""
    launch("train", train)


def train(config: DictConfig) -> float | None:
    """Train what the config describes in its run folder; returns the best value of the monitored metric."""
    _refuse_sweep_of_many(config.trainer.devices)
    run = Run(config.paths.run)
    if _done(run.status, config.trainer):
        print("this run is finished already; more: epochs=<n>, anew: delete its folder")
        return _report(run)
    data = build(config.data)
    task = _seeded_task(config, data)
    task.check_monitor(config.monitor)
    trainer = _trainer(config, run)
    if trainer.is_global_zero:
        run.save_config(config)
        run.set_status("running", id=run_id(config), command=sys.argv[1:])
    try:
        _log_config(trainer, config)
        trainer.fit(task, data, ckpt_path=_resume(run, trainer, task))
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        _end(trainer, run, "interrupted" if stopped else "failed", error=f"{type(error).__name__}: {error}")
        if stopped:
            print(f"\nstopped; the same command goes on from {run.last}" if run.last.exists() else "\nstopped")
        raise
    if not trainer.is_global_zero:
        return None
    _write_results(run, trainer, config)
    _end(trainer, run, "finished", epochs=trainer.current_epoch, steps=trainer.global_step)
    return _report(run)


def _refuse_sweep_of_many(devices: Any) -> None:
    """Lightning starts its other processes with the whole command, which with -m is the whole sweep."""
    swept = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if swept and devices != 1:
        raise ValueError(f"a sweep (-m) runs jobs of one process, trainer.devices={devices}: run each value by itself")


def _done(status: dict[str, Any], trainer: DictConfig) -> bool:
    """Has the run been trained for as long as it is asked to be?"""
    if status["state"] != "finished":
        return False
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps or -1
    return 0 < epochs <= status["epochs"] or 0 < steps <= status["steps"]


def _seeded_task(config: DictConfig, data: DataModule) -> Task:
    """The task with initial weights that are a function of the seed."""
    from lightning.pytorch import seed_everything

    seed_everything(config.seed, verbose=False)
    return build_task(config, data)


def _log_config(trainer: Trainer, config: DictConfig) -> None:
    for logger in trainer.loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))  # pyright: ignore[reportArgumentType]


def _end(trainer: Trainer, run: Run, state: str, **more: Any) -> None:
    """Leave a true record of how it went, here and in Weights & Biases."""
    if trainer.is_global_zero:
        run.set_status(state, **more)
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish(exit_code=0 if state == "finished" else 1)


def _trainer(config: DictConfig, run: Run) -> Trainer:
    from quadrat.callbacks.checkpoints import AtomicCheckpointIO

    quiet()
    shown = [name for name in config.callbacks if name != "progress" or config.trainer.enable_progress_bar]
    callbacks = [build(config.callbacks[name]) for name in shown if config.callbacks[name]]
    loggers = [build(logger) for logger in config.logger.values() if logger]
    return build(
        config.trainer,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(run.folder),
    )


def _resume(run: Run, trainer: Trainer, task: Task) -> Path | None:
    """The checkpoint to go on from, if there is one; the log is cut back to it, or emptied."""
    state: dict[str, Any] = read_checkpoint(run.last) if run.last.exists() else {"global_step": 0}
    if "schema" in state:
        same_classes(state["schema"]["classes"], task.schema.classes, run.last)
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            if hasattr(logger, "cut_back"):
                logger.cut_back(state["global_step"])  # pyright: ignore[reportAttributeAccessIssue]
    if not run.last.exists():
        return None
    if trainer.is_global_zero:
        print(f"resuming after epoch {state['epoch']}, step {state['global_step']}, from {run.last}")
    return run.last


def _write_results(run: Run, trainer: Trainer, config: DictConfig) -> None:
    last = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    best = getattr(trainer.checkpoint_callback, "best_model_score", None)
    best = None if best is None else float(best)
    run.write_json(
        run.metrics_file, {"monitor": config.monitor, "best": best, "epochs": trainer.current_epoch, "last": last}
    )


def _report(run: Run) -> float | None:
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


if __name__ == "__main__":
    main()
