"""Fixtures that every test may ask for."""

import os
from pathlib import Path

import pytest
import torch


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
