"""Fixtures that every test may ask for."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadScheduling
from xdist.workermanage import WorkerController

SLURM = "test_slurm.py::"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The cluster begins first, since it mostly waits; the other tests keep their order."""
    items.sort(key=lambda item: SLURM not in item.nodeid)


class Together(LoadScheduling):
    """The tests of the cluster share one worker, and with it one cluster; xdist's own groups get lost under pytest 9.2."""

    def _send_tests(self, node: WorkerController, num: int) -> None:
        together = sum(SLURM in (self.collection or [])[index] for index in self.pending)
        super()._send_tests(node, max(num, together))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScheduling | None:
    """For the usual way of spreading tests over workers."""
    return Together(config, log) if config.getoption("dist") == "load" else None


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: the cluster, signals and time limits are mostly waited for."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run side by side, one on each core; threads of one would only wait for those of the others."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data: QUADRAT_SHARED, or ``shared`` beside the checkout."""
    beside = Path(__file__).resolve().parents[1] / ".." / "shared"
    folder = Path(os.environ.get("QUADRAT_SHARED", beside)).resolve()
    if not (folder / "data").is_dir():
        pytest.skip(
            f"no real data in {folder}: set QUADRAT_SHARED to the folder that holds data/voc_raccoon and the others"
        )
    return folder
