"""quadrat-train: a config in, a run folder out. The same command again goes on where the run stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from quadrat.configs import build, build_task, launch, run_id
from quadrat.runs import Run

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from quadrat.data.module import DataModule
    from quadrat.tasks.base import Task


def main() -> None:
    """The console script."""
    launch("train", train)


def train(config: DictConfig) -> float | None:
    """Train what the config describes in its run folder; returns the best value of the monitored metric."""
    run = Run(config.paths.run)
    target = config.trainer.max_epochs
    if run.status["state"] == "finished" and run.status["epochs"] == target:
        print(f"this run is finished already ({target} epochs); more: trainer.max_epochs=<n>, anew: delete its folder")
        return _report(run)
    data = build(config.data)
    task = _seeded_task(config, data)
    trainer = _trainer(config, run)
    if trainer.is_global_zero:
        run.save_config(config)
        run.set_status("running", id=run_id(config), command=sys.argv[1:], epochs=target)
    try:
        _log_config(trainer, config)
        trainer.fit(task, data, ckpt_path=_resume(run, trainer))
    except BaseException as error:
        _end(trainer, run, "interrupted" if trainer.interrupted else "failed", error=f"{type(error).__name__}: {error}")
        raise
    if not trainer.is_global_zero:
        return None
    _write_results(run, trainer, config)
    _end(trainer, run, "finished", steps=trainer.global_step)
    return _report(run)


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

    callbacks = [build(callback) for callback in config.callbacks.values() if callback]
    loggers = [build(logger) for logger in config.logger.values() if logger]
    return build(
        config.trainer,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(run.folder),
    )


def _resume(run: Run, trainer: Trainer) -> Path | None:
    """The checkpoint to go on from, if there is one; the log is cut back to it."""
    import torch

    if not run.last.exists():
        return None
    state = torch.load(run.last, map_location="cpu", weights_only=True)
    if trainer.is_global_zero:
        print(f"resuming after epoch {state['epoch']}, step {state['global_step']}, from {run.last}")
        for logger in trainer.loggers:
            if hasattr(logger, "cut_back"):
                logger.cut_back(state["global_step"])  # pyright: ignore[reportAttributeAccessIssue]
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
    print(f"\n  best {results['monitor']}: {results['best']:.3f}" if results["best"] is not None else "")
    print(f"  run folder  {run.folder}\n  metrics     {run.log}\n  pictures    {run.pictures / 'latest.png'}")
    print(f"\n  quadrat-evaluate run={run.folder}\n  quadrat-predict run={run.folder} source=<picture or folder>\n")
    return results["best"]


if __name__ == "__main__":
    main()
