"""Regions that came with the pictures are handed on."""

from dataclasses import replace

import pytest
import torch

from contracts import batch_of, drawn
from quadrat.backbones.pixels import Pixels
from quadrat.proposers.precomputed import Precomputed
from quadrat.structures import Batch, Sample

REGIONS = torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 30], [1, 2, 3, 4]])


def batch(*counts: int) -> Batch:
    (image, targets) = drawn(1)[0]
    return Batch.collate([Sample(image, replace(targets, proposals=REGIONS[:count])) for count in counts])


def test_precomputed_hands_on_the_best() -> None:
    proposals = Precomputed(Pixels()).propose(None, batch(3, 1, 0), 2)
    assert torch.equal(proposals.boxes[0], REGIONS[:2])
    assert proposals.valid.tolist() == [[True, True], [True, False], [False, False]]
    assert (proposals.scores.diff(dim=1) < 0).all()
    assert proposals.scores.shape == (3, 2)


def test_precomputed_of_pictures_without_any_names_the_remedy() -> None:
    with pytest.raises(ValueError, match="data/proposals=selective_search"):
        Precomputed(Pixels()).propose(None, batch_of({}), 2)
