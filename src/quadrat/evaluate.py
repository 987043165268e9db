"""quadrat-evaluate: the metrics of a run on a split, as a table and a json file, with what it saw in each picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from quadrat.configs import build, build_task, flat, launch, quiet, retuned, tiled
from quadrat.runs import Run, load_weights, read_checkpoint, same_schema, without_weights

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from quadrat.outputs import Keeper
    from quadrat.structures import Batch, Result


def main() -> None:
    """The console script."""
    launch("evaluate", evaluate)


def evaluate(config: DictConfig) -> dict[str, float]:
    """Measure a run's checkpoint on ``split``; writes `evaluation/<split>/metrics.json`, its results, and its figures."""
    from quadrat.outputs import keeper
    from quadrat.plots.draw import write_image

    run = Run.open(config.run)
    settings = run.config()
    _change(settings.data, config.data)
    settings.model = tiled(_model(settings, config), config.tiles, config.overlap)
    if config.trainer.devices != 1:
        raise ValueError(
            f"quadrat-evaluate counts every picture once, in one process: trainer.devices={config.trainer.devices}"
        )
    data = build(settings.data)
    checkpoint = run.checkpoint(config.checkpoint)
    same_schema(read_checkpoint(checkpoint)["schema"], data.source(config.split).schema, checkpoint)
    task = build_task(settings, data)
    load_weights(task.model, checkpoint)
    folder = run.folder / "evaluation" / _place(config)
    collector = _collector(keeper(task.model.result, folder, data.schema))
    quiet()
    trainer = build(
        config.trainer, callbacks=[collector, build(config.progress)], logger=False, default_root_dir=str(run.folder)
    )
    trainer.test(task, dataloaders=data.evaluation_dataloader(config.split), verbose=False)
    results = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}
    how = {"checkpoint": str(checkpoint), "split": config.split, **_tiles(config), **_retuned(config)}
    run.write_json(folder / "metrics.json", {**how, **results})
    kept = collector.keeper.finish()
    for name, picture in collector.figures.items():
        write_image(folder / f"{name}.png", picture)
    print("\n" + "\n".join(f"  {name:<12} {value:.4f}" for name, value in results.items() if "/" not in name))
    print(f"\n{collector.table}\n\n  {checkpoint.name} on {config.split}; metrics and {kept} in {folder}\n")
    _track(settings, config, run, {f"{config.split}/{name}": value for name, value in results.items()})
    return results


def _place(config: DictConfig) -> str:
    """The split, and what is evaluated otherwise than the run was trained: results of each lie in a folder of their own."""
    changes = flat(OmegaConf.to_container(config.model))
    return "+".join([config.split, *(f"{name}={value}" for name, value in changes.items())]).replace("/", "_")


def _model(settings: DictConfig, config: DictConfig) -> Any:
    """The run's model, with the settings that the command line changes."""
    own = without_weights(OmegaConf.to_container(settings.model))
    return retuned(own, OmegaConf.to_container(config.model))


def _retuned(config: DictConfig) -> dict[str, Any]:
    return {"model": OmegaConf.to_container(config.model)} if config.model else {}


def _tiles(config: DictConfig) -> dict[str, Any]:
    return {} if config.tiles is None else {"tiles": str(config.tiles), "overlap": config.overlap}


def _track(settings: DictConfig, config: DictConfig, run: Run, numbers: dict[str, float]) -> None:
    """What is found of a run that was logged to W&B is logged beside it."""
    if not settings.logger.get("wandb"):
        return
    from quadrat.callbacks.tracking import close

    id = f"{run.folder.name}-evaluate-{_place(config)}"
    name = f"{settings.logger.wandb.name or run.folder.name} on {config.split}"
    folder = str(run.folder / "evaluation" / _place(config))
    own = {"folder": folder, "run_id": id, "name": name, "job_type": "evaluate"}
    log = build(OmegaConf.merge(settings.logger.wandb, own))
    evaluated: Any = OmegaConf.to_container(settings, resolve=True)
    log.log_hyperparams(evaluated | {"evaluated": {"split": config.split, "checkpoint": config.checkpoint}})
    log.log_metrics(numbers, step=0)
    close("done", 0)


def _change(data: DictConfig, wanted: DictConfig) -> None:
    """Put what the command line says of the data in the place of what the run was trained with."""
    if wanted.root is not None:
        if "root" not in data.source:
            raise ValueError(
                f"this run's data has no folder ({data.source._target_}), data.root={wanted.root} has no place"
            )
        data.source.root = wanted.root
    if wanted.batch_size is not None:
        data.batch_size, data.eval_batch_size = wanted.batch_size, None
    if wanted.workers is not None:
        data.workers = wanted.workers


def _collector(keeper: Keeper):
    from lightning.pytorch import Callback

    class Collector(Callback):
        """Every result, in the frame of the original picture, and what the metric says beside its numbers."""

        def __init__(self) -> None:
            self.keeper, self.table = keeper, ""
            self.figures: dict[str, Any] = {}

        def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            self.table, self.figures = pl_module.metric.table(), pl_module.figures()

        def on_test_batch_end(
            self,
            trainer: Trainer,
            pl_module: Any,
            outputs: list[Result],
            batch: Batch,
            batch_idx: int,
            dataloader_idx: int = 0,
        ) -> None:
            for found, target in zip(outputs, batch.targets, strict=True):
                self.keeper.add(found.cpu().rescaled(target.original_size), str(target.image_id), target.image_id)

    return Collector()


if __name__ == "__main__":
    main()
