"""Candidate directions by hand."""

from __future__ import annotations

import torch

from aird.directions.candidates import difference_in_means


def test_difference_in_means_by_hand() -> None:
    harmful = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 6.0]]]])  # two prompts, one layer, one position
    harmless = torch.tensor([[[[0.5, 1.0]]], [[[0.5, -1.0]]], [[[2.0, 3.0]]]])
    candidates = difference_in_means(harmful, harmless)
    assert candidates.dtype == torch.float64
    assert candidates.tolist() == [[[2.0 - 1.0, 4.0 - 1.0]]]


def test_difference_in_means_accumulates_in_float64() -> None:
    """In bfloat16 the sum of 1024 times 1.0078125 would stop growing."""
    harmful = torch.full((1024, 1, 1, 1), 1.0078125, dtype=torch.bfloat16)
    harmless = torch.full((1024, 1, 1, 1), 1.0, dtype=torch.bfloat16)
    assert difference_in_means(harmful, harmless).item() == 0.0078125
