"""The lecture's bar chart, measured: what R-CNN, SPPNet, Fast and Faster R-CNN cost in training and for a picture."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from tqdm import tqdm

from quadrat.benches.threads import one_thread
from quadrat.configs import build, build_task, compose
from quadrat.data.module import Batches, DataModule
from quadrat.jobs import train
from quadrat.models.regions import Regions
from quadrat.plots.draw import write_image
from quadrat.plots.rcnn_family import draw_family
from quadrat.runs import Run, load_weights
from quadrat.structures import Batch

EXPECTED = """\
Expected before measuring, from the papers' numbers:
  1. R-CNN's network takes at least 10 times as long for a picture as Fast R-CNN's (2000 regions, each through the trunk)
  2. with Fast R-CNN, finding regions takes longer than everything else
  3. with Faster R-CNN, finding regions takes a few per cent of the picture's time (below 20)
  4. the order of a picture's whole time: R-CNN, then SPPNet and Fast R-CNN, then Faster R-CNN
  5. features on disk: R-CNN and SPPNet need them, the others none"""


@dataclass
class Cost:
    """Of one system: seconds of one core, bytes, AP."""

    training: float = 0.0
    network: float = 0.0
    proposals: float = 0.0
    disk: int = 0
    ap50: float = 0.0

    @property
    def picture(self) -> float:
        return self.network + self.proposals


class Stopwatch(Callback):
    """Writes the seconds from the first training step to the first picture of the only validation: with all fits between."""

    def __init__(self, file: str) -> None:
        self.file, self.started = Path(file), 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.process_time()

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.started:
            self.file.write_text(json.dumps(time.process_time() - self.started))
            self.started = 0.0


def run(
    systems: Mapping[str, Sequence[str]], common: Sequence[str], pictures: int, proposals: str, out: Path
) -> dict[str, Cost]:
    """Train each system by its command, time them picture by picture in turns, and write table, json and chart to ``out``."""
    print(EXPECTED)
    with one_thread():
        costs = _costs(systems, common, pictures, proposals, out)
    text = f"{EXPECTED}\n\n{table(costs)}\n\n{verdicts(costs)}"
    print(f"\n{text}")
    (out / "rcnn_family.txt").write_text(text + "\n")
    (out / "rcnn_family.json").write_text(json.dumps({name: asdict(cost) for name, cost in costs.items()}, indent=2))
    write_image(out / "rcnn_family.png", draw_family(costs))
    return costs


def _costs(
    systems: Mapping[str, Sequence[str]], common: Sequence[str], pictures: int, proposals: str, out: Path
) -> dict[str, Cost]:
    watch = out / "seconds.json"
    costs: dict[str, Cost] = {}
    models, data = {}, {}
    for name, own in systems.items():
        print(f"\n--- {name}")
        timed = [
            "+callbacks.stopwatch._target_=quadrat.benches.rcnn_family.Stopwatch",
            f"+callbacks.stopwatch.file={watch}",
        ]
        places = [f"paths.proposals={proposals}", f"paths.logs={out}/runs", "resume.mode=never"]
        config = compose("train", [*own, *common, *timed, *places])
        train(config)
        costs[name] = _cost(config, json.loads(watch.read_text()))
        models[name], data[name] = _loaded(config)
    _time(models, data, costs, pictures)
    return costs


def _cost(config: DictConfig, seconds: float) -> Cost:
    """What the training has cost and given."""
    run = Run(config.paths.run)
    results = json.loads(run.metrics_file.read_text())["last"]
    disk = sum(file.stat().st_size for file in (run.folder / "features").rglob("*") if file.is_file())
    return Cost(training=seconds, ap50=results["val/ap50"], disk=disk)


def _loaded(config: DictConfig) -> tuple[Regions, DataModule]:
    data = build(config.data)
    model = build_task(config, data).model
    load_weights(model, Run(config.paths.run).checkpoint("last"))
    assert isinstance(model, Regions)
    return model.eval(), data


def _time(
    models: Mapping[str, Regions], data: Mapping[str, DataModule], costs: Mapping[str, Cost], pictures: int
) -> None:
    """Every system sees a picture before any sees the next, so that what else the machine does meets all of them."""
    for name, model in models.items():
        _seen(model, data[name], 0)  # what is compiled or made at the first call is no picture's cost
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    order = [(picture, name) for picture in range(pictures) for name in models]
    for picture, name in tqdm(order, "timing", delay=2):
        seconds[name].append(_seen(models[name], data[name], picture))
    for name, found in seconds.items():
        costs[name].network = statistics.mean(network for network, _ in found)
        costs[name].proposals = statistics.mean(proposals for _, proposals in found)


@torch.inference_mode()
def _seen(model: Regions, data: DataModule, index: int) -> tuple[float, float]:
    """Seconds of a picture for the network, and for finding its regions."""
    source = data.source("test")
    batches = Batches(source, data.eval_augment, seed=data.seed, divisor=data.divisor)
    batch = Batch.collate([batches.sample(0, index)], divisor=data.divisor)
    if data.proposals is None:
        return _with_own_proposals(model, batch)
    begun = time.process_time()
    model.predict(model.features(batch), batch)
    seen = time.process_time()
    data.proposals.finder(source[index].image)  # pyright: ignore[reportAttributeAccessIssue]  # itself, not what is cached
    return seen - begun, time.process_time() - seen


def _with_own_proposals(model: Regions, batch: Batch) -> tuple[float, float]:
    """The like where the network proposes: its proposer's share by itself."""
    begun = time.process_time()
    maps = model.features(batch)
    mapped = time.process_time()
    regions = model.proposer.propose(model.proposer(maps), batch, model.proposer.test_limits)
    proposed = time.process_time()
    model.box.predict(maps, regions, batch)
    return time.process_time() - proposed + mapped - begun, proposed - mapped


def table(costs: Mapping[str, Cost]) -> str:
    """A line a system; factors are to the last one."""
    head = f"{'':<14}{'train s':>9}{'network s':>11}{'regions s':>11}{'picture s':>11}{'factor':>8}{'disk MB':>9}{'AP50':>7}"
    last = list(costs.values())[-1]
    lines = [
        f"{name:<14}{c.training:>9.1f}{c.network:>11.3f}{c.proposals:>11.3f}{c.picture:>11.3f}"
        f"{c.picture / last.picture:>8.1f}{c.disk / 1e6:>9.1f}{c.ap50:>7.3f}"
        for name, c in costs.items()
    ]
    return "\n".join([head, *lines])


def verdicts(costs: Mapping[str, Cost]) -> str:
    """Was each expectation met? For the four systems by their names in the chart."""
    rcnn, spp, fast, faster = (costs[name] for name in ("R-CNN", "SPPNet", "Fast R-CNN", "Faster R-CNN"))
    share = faster.proposals / faster.picture
    found = [
        (
            rcnn.network >= 10 * fast.network,
            f"R-CNN's network takes {rcnn.network / fast.network:.1f} times Fast R-CNN's",
        ),
        (fast.proposals > fast.network, f"regions {fast.proposals:.2f} s, the rest {fast.network:.2f} s"),
        (share < 0.2, f"the proposer takes {share:.0%} of Faster R-CNN's picture"),
        (
            rcnn.picture > max(spp.picture, fast.picture) and min(spp.picture, fast.picture) > faster.picture,
            ", ".join(f"{name} {cost.picture:.2f} s" for name, cost in costs.items()),
        ),
        (
            min(rcnn.disk, spp.disk) > 0 == max(fast.disk, faster.disk),
            ", ".join(f"{name} {cost.disk / 1e6:.0f} MB" for name, cost in costs.items()),
        ),
    ]
    return "\n".join(f"  {i}. {'yes' if met else 'NO'}: {words}" for i, (met, words) in enumerate(found, start=1))
