"""Losses of classes, averaged over the rows that count."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def binary_cross_entropy(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid rows of logits (B, S) against booleans (B, S)."""
    terms = functional.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return masked_mean(terms, valid)


def cross_entropy(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid rows of logits (B, S, C + 1) against labels (B, S)."""
    terms = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return masked_mean(terms.view_as(valid), valid)


def masked_mean(terms: Tensor, valid: Tensor) -> Tensor:
    """Sum of the valid terms divided by their number, 0 where there are none."""
    return (terms * valid).sum() / valid.sum().clamp(min=1)
