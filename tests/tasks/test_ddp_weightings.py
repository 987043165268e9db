"""Two processes, each with half of every batch, weigh as one process does with all of it."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import pytest
import torch

import two_heads
from two_heads import KINDS, TERMS


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process left, and what each of two did."""
    folder = tmp_path_factory.mktemp("weightings")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    commands = [[sys.executable, two_heads.__file__, str(folder), *which, port] for which in ("01", "02", "12")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 0, said[-3000:]
    return [torch.load(folder / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt")]


@pytest.mark.parametrize("name", KINDS)
def test_ranks_hold_the_same_weights(name: str, results: list[dict[str, Any]]) -> None:
    first, second = results[1][name], results[2][name]
    assert first["slopes"] == second["slopes"] or name in ("uncertainty", "uncertainty_revised", "imtl_l")
    assert all(torch.equal(first["weights"][key], second["weights"][key]) for key in first["weights"])


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_train_as_one(name: str, results: list[dict[str, Any]]) -> None:
    one, two = results[0][name], results[1][name]
    assert two["slopes"] == pytest.approx(one["slopes"], rel=1e-3, abs=1e-5)
    for key, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], value, rtol=1e-3, atol=1e-5, msg=f"{name}: {key}")


@pytest.mark.parametrize("name", ["static", "pcgrad", "gradnorm"])
def test_logged_gradients_are_those_of_all_processes(name: str, results: list[dict[str, Any]]) -> None:
    one, two = results[0][name]["rows"], results[1][name]["rows"]
    looked = [step for step, row in one.items() if f"train/gradient_norm/{TERMS[0]}" in row]
    assert looked == [1, 3, 5]
    for step in looked:
        numbers = {key: value for key, value in one[step].items() if "gradient_norm" in key or "cosine" in key}
        assert {key: two[step][key] for key in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-5)


def test_every_weighting_is_another_training(results: list[dict[str, Any]]) -> None:
    """Or the comparisons above would say nothing; that is why there are three epochs, in which DWA begins."""
    ends = {name: tuple(result["weights"]["backbone.weight"].flatten().tolist()) for name, result in results[0].items()}
    assert len(set(ends.values())) == len(ends)
