"""quadrat-predict: what a run sees in a picture or in a folder of pictures, drawn and as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from quadrat.configs import launch, retuned, tiled
from quadrat.loading import load, see
from quadrat.runs import Run

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def main() -> None:
    """The console script."""
    launch("predict", predict)


def predict(config: DictConfig) -> Path:
    """See every picture of ``source``; writes drawn pictures and `detections.json` or `labels/` under ``output``, returned."""
    from tqdm import tqdm

    from quadrat.data.source import read_image
    from quadrat.outputs import keeper
    from quadrat.plots.draw import draw_result, write_image

    run = Run.open(config.run)
    source = Path(str(config.source)).expanduser()
    files = pictures(source)
    model, schema, prepared = load(run, config.checkpoint, config.device, _changes(config))
    output = Path(config.output or run.folder / "predictions")
    if output.resolve() in (source.resolve(), source.resolve().parent):
        raise ValueError(
            f"output={output} is where the pictures lie, and drawings could replace them; name another folder"
        )
    drawings = _drawings(files, source)
    results = keeper(model.result, output, schema)
    # the bar appears only where one has to wait
    for file in tqdm(files, desc="predicting", unit="picture", delay=2):
        image = read_image(file)
        found = see(model, prepared(image))
        name = _name(file, source)
        drawing = output / drawings[file]
        drawing.parent.mkdir(parents=True, exist_ok=True)
        write_image(drawing, draw_result(found, image, schema, threshold=config.threshold))
        results.add(found, str(drawings[file].with_suffix("")), _image_id(name), file_name=str(name))
    print(f"{results.finish()} in {len(files)} pictures: {output}")
    return output


def pictures(source: Path) -> list[Path]:
    """The picture itself, or every picture of a folder and below, sorted; FileNotFoundError where there is none."""
    if source.is_file():
        return [source]
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no picture at {source}; source=<picture or folder> with {', '.join(SUFFIXES)}")
    return files


def _name(file: Path, source: Path) -> Path:
    """The place of a picture in the source folder."""
    return Path(file.name) if file == source else file.relative_to(source)


def _drawings(files: list[Path], source: Path) -> dict[Path, Path]:
    """Where each picture's drawing goes: its name as png, after the whole name where two would be the same."""
    names = {file: _name(file, source) for file in files}
    counts = Counter(name.with_suffix("") for name in names.values())
    return {
        file: name.with_suffix(".png") if counts[name.with_suffix("")] == 1 else name.with_name(f"{name.name}.png")
        for file, name in names.items()
    }


def _changes(config: DictConfig) -> Callable[[Any], Any]:
    """What this command asks of the model beside the run's own settings."""
    return lambda model: tiled(retuned(model, OmegaConf.to_container(config.model)), config.tiles, config.overlap)


def _image_id(name: Path) -> int | str:
    """COCO's pictures are named by their number; any other by its name in the folder."""
    return int(name.stem) if name.stem.isdigit() and name.parent == Path() else str(name)


if __name__ == "__main__":
    main()
