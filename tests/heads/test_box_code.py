"""Four numbers for a box: by hand, there and back, and what they are measured in."""

import pytest
import torch

from quadrat.heads.box_code import BoxCode

FRAME = torch.tensor([[0.0, 0, 200, 100]])
BOX = torch.tensor([[20.0, 10, 60, 90]])


def test_by_hand():
    assert BoxCode("centre").encode(BOX, FRAME)[0].tolist() == pytest.approx([0.2, 0.5, 0.2, 0.8])
    assert BoxCode("edges").encode(BOX, FRAME)[0].tolist() == pytest.approx([0.1, 0.1, 0.3, 0.9])


@pytest.mark.parametrize("encoding", ["centre", "edges"])
@pytest.mark.parametrize("standardise", [None, [[0.5, 0.5, 0.4, 0.3], [0.1, 0.2, 0.3, 0.4]]])
def test_there_and_back(encoding, standardise):
    code = BoxCode(encoding, standardise)
    frames = torch.tensor([[10.0, 20, 110, 220]])
    torch.testing.assert_close(code.decode(code.encode(BOX, frames), frames), BOX)


def test_standardised_by_hand():
    code = BoxCode("centre", [[0.5, 0.5, 0.2, 0.2], [0.1, 1, 1, 0.3]])
    assert code.encode(BOX, FRAME)[0].tolist() == pytest.approx([-3, 0, 0, 2], abs=1e-6)


def test_measured_numbers_have_mean_0_and_deviation_1():
    code = BoxCode("centre", "measured")
    first = torch.rand(50, 2) * 40
    boxes = torch.cat([first, first + 5 + torch.rand(50, 2) * 40], dim=1)
    code.measure(boxes, FRAME.expand(50, 4))
    codes = code.encode(boxes, FRAME)
    torch.testing.assert_close(codes.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(codes.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_given_numbers_are_not_measured_and_not_loaded():
    """What the config says holds, also for weights of a run with other numbers."""
    code = BoxCode("centre", [[0.5, 0.5, 0.2, 0.2], [0.1, 1, 1, 0.3]])
    code.measure(BOX, FRAME)
    code.load_state_dict(BoxCode().state_dict())
    assert code.std.tolist() == pytest.approx([0.1, 1, 1, 0.3])
    measured = BoxCode("centre", "measured")
    measured.load_state_dict(code.state_dict())
    assert measured.std.tolist() == pytest.approx([0.1, 1, 1, 0.3])


def test_inside_out_is_made_small():
    box = BoxCode("edges").decode(torch.tensor([[0.6, 0.5, 0.4, 0.7]]), FRAME)[0]
    assert box.tolist() == pytest.approx([99.9, 50, 100.1, 70])


@pytest.mark.parametrize("standardise", ["some", [[0, 0, 0, 0]], [[0, 0, 0, 0], [1, 1, 0, 1]], [[0, 0], [1, 1]]])
def test_numbers_that_are_none_are_refused(standardise):
    with pytest.raises(ValueError, match="standardise is null, measured"):
        BoxCode("centre", standardise)


def test_unknown_encoding_is_refused():
    with pytest.raises(ValueError, match="by its centre or its edges"):
        BoxCode("corners")  # pyright: ignore[reportArgumentType]


def test_what_has_no_extent_can_be_told_to_grow():
    codes = torch.tensor([[0.5, 0.5, -0.1, 0.0]], requires_grad=True)
    box = BoxCode().decode(codes, FRAME)
    (box[0, 2] - box[0, 0] + box[0, 3] - box[0, 1]).backward()
    assert codes.grad[0, 2:].tolist() == [200, 100]
