"""What is kept of results beside their metrics: detections as COCO entries, semantic maps as pictures of class numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from quadrat.plots.draw import pixel_colours
from quadrat.runs import write
from quadrat.structures import Detections, Result, Schema, SemanticMap


class Keeper(Protocol):
    """Takes results one after another, each in the frame of its original picture."""

    def add(self, found: Any, name: str, image_id: int | str, **more: Any) -> None: ...

    def finish(self) -> str:
        """Leave everything on the disk; what it is, in words."""
        ...


class CocoEntries:
    """All detections in one `detections.json`, as COCO's results, each with ``more`` beside."""

    def __init__(self, folder: Path, schema: Schema) -> None:
        self.folder, self.schema = folder, schema
        self.entries: list[dict[str, Any]] = []

    def add(self, found: Detections, name: str, image_id: int | str, **more: Any) -> None:
        self.entries += [{**entry, **more} for entry in found.cpu().to_coco(image_id, self.schema.category_ids)]

    def finish(self) -> str:
        write(self.folder / "detections.json", json.dumps(self.entries, indent=1))
        return f"{len(self.entries)} detections"


class LabelMaps:
    """Each semantic map as `labels/<name>.png`, whose palette indices are the classes 0..S-1; `labels/classes.txt` names them."""

    def __init__(self, folder: Path, schema: Schema) -> None:
        self.folder, self.schema = folder / "labels", schema
        self.count = 0
        colours = pixel_colours(schema)
        self.palette = [part for value in range(256) for part in colours.get(value, (0, 0, 0))]

    def add(self, found: SemanticMap, name: str, image_id: int | str, **more: Any) -> None:
        picture = Image.fromarray(found.labels.cpu().numpy()).convert("P")
        picture.putpalette(self.palette)
        stream = io.BytesIO()
        picture.save(stream, format="png")
        write(self.folder / f"{name}.png", stream.getvalue())
        self.count += 1

    def finish(self) -> str:
        write(self.folder / "classes.txt", "\n".join(self.schema.pixel_classes) + "\n")
        return f"{self.count} label maps"


KEEPERS: Mapping[type[Result], type[Any]] = {Detections: CocoEntries, SemanticMap: LabelMaps}


def keeper(kind: type[Result], folder: Path, schema: Schema) -> Keeper:
    """What keeps results of a kind under ``folder``."""
    return KEEPERS[kind](folder, schema)
