"""The report in W&B, made by the real client with a server on this machine; nothing here can reach another."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quadrat.reports.collect import collect
from quadrat.reports.compare import Comparison, comparison
from quadrat.reports.find import find
from quadrat.reports.wandb_report import save
from reported import make_run, training
from wandb_server import KEY, WandbServer

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # wandb-workspaces 0.4, on import
TRACKED = {"logger.wandb.project": "quadrat", "logger.wandb.group": "rpn_lambda", "logger.wandb.monitor": "val/ap50"}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key and no settings of the user's, and a server that nobody answers for."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "2")
    monkeypatch.setattr("wandb.Api._HTTP_TIMEOUT", 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        yield


def swept(folder: Path, **tracked: str) -> Comparison:
    for i, weight in enumerate((0.1, 1.0, 10.0)):
        rows, last = training(0.5 + i / 10, 0, epochs=1)
        settings = {"loss.weights.rpn_box": weight, **TRACKED, **tracked}
        make_run(folder / f"r{i}", settings, 0, 0.5 + i / 10, rows=rows, last=last)
    return comparison("rpn_lambda", collect(find(str(folder), folder).jobs), ["val/ap50", "val/map"])


def test_report_names_group_metric_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        url = save(swept(tmp_path))
    (report,) = server.reports
    assert url.startswith(f"{server.url}/someone/quadrat/reports/rpn_lambda:-val/ap50--")
    assert (report["entityName"], report["projectName"], report["displayName"]) == (
        "someone",
        "quadrat",
        "rpn_lambda: val/ap50",
    )
    assert report["description"].startswith("Best: rpn_box=10, val/ap50 0.700")
    grids = [block["metadata"] for block in report["spec"]["blocks"] if block["type"] == "panel-grid"]
    for grid in grids:
        (runs,) = grid["runSets"]
        assert filters(runs) == [("run", "group", "rpn_lambda"), ("run", "jobType", "train")]
        assert runs["grouping"] == [{"section": "config", "name": "loss.value.weights.rpn_box"}]
    panels = [panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]]
    (parallel,) = [panel["config"] for panel in panels if panel["viewType"] == "Parallel Coordinates Plot"]
    axes = [column["accessor"] for column in parallel["columns"]]
    assert "config:loss.value.weights.rpn_box" in axes
    assert axes[-1] == "summary:val/ap50.max"
    scatter = [panel["config"] for panel in panels if panel["viewType"] == "Scatter Plot"]
    assert [(one["xAxis"], one["yAxis"]) for one in scatter] == [
        ("config:loss.value.weights.rpn_box", "summary:val/ap50.max"),
        ("summary:val/ap50.max", "summary:val/map"),
    ]
    lines = {
        name for panel in panels if panel["viewType"] == "Run History Line Plot" for name in panel["config"]["metrics"]
    }
    assert {"val/ap50", "val/map", "train/loss/rpn_box", "train/gradient_norm/rpn_box"} <= lines
    assert {panel["config"]["xAxis"] for panel in panels if "metrics" in panel["config"]} == {"trainer/global_step"}


def filters(runs: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The conditions that a run of the set meets, all of them."""
    conditions = runs["filters"]["filters"]
    assert runs["filters"]["filterFormat"] == "filterV2"
    assert {one.get("connector", "AND") for one in conditions} == {"AND"}
    return [(one["key"]["section"], one["key"]["name"], one["value"]) for one in conditions]


def test_report_without_a_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no API key; `wandb login` or WANDB_API_KEY gives one"):
        save(swept(tmp_path))


def test_report_of_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with pytest.raises(ValueError, match="W&B does not take it"):
        save(swept(tmp_path))


def test_report_of_a_project_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WandbServer() as server:
        server.projects = []
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        with pytest.raises(ValueError, match=r"W&B does not take it .*project 'someone/quadrat' not found"):
            save(swept(tmp_path))
    assert server.reports == []


def test_report_of_runs_that_were_not_logged(tmp_path: Path) -> None:
    make_run(tmp_path / "r")
    result = comparison("mine", collect(find(str(tmp_path / "r"), tmp_path).jobs))
    with pytest.raises(ValueError, match="the runs were not logged to it; train with logger=wandb"):
        save(result)


def test_report_of_two_groups(tmp_path: Path) -> None:
    for group in ("a", "b"):
        make_run(tmp_path / group, {**TRACKED, "logger.wandb.group": group}, seed=len(list(tmp_path.iterdir())))
    result = comparison("mine", collect(find(str(tmp_path), tmp_path).jobs))
    with pytest.raises(ValueError, match="of no one group but of /quadrat/a, /quadrat/b"):
        save(result)
