"""Whitened inputs against the matrix that the formula says, also where most eigenvalues are kept as their mean."""

from __future__ import annotations

import pytest
import torch

from aird.patching.whitening import Whitening, whitening_of


def exact(covariance: torch.Tensor, strength: float) -> torch.Tensor:
    """Return P as the module's formula says it."""
    values, vectors = torch.linalg.eigh(covariance.double())
    mean = values.mean()
    return (vectors * ((values / mean + strength) / (1 + strength)).rsqrt()) @ vectors.T


@pytest.mark.parametrize("rank", [32, 300])  # some of the eigenvectors, and all
def test_rows_are_whitened_as_the_formula_says(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    width = 200
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    # A few massive directions, some large ones, and a long tail, as inputs of down-projections have them.
    spectrum = torch.cat([torch.tensor([3000.0, 400.0]), torch.linspace(20, 1, 28), torch.full((170,), 0.02)])
    covariance = ((basis * spectrum) @ basis.T).float()
    whitening = whitening_of(covariance, 0.01, rank)
    rows = torch.randn(3, width, generator=generator)
    torch.testing.assert_close(
        whitening.rows(rows).double(), rows.double() @ exact(covariance, 0.01), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(whitening.rows(whitening.whitened(rows)), rows, rtol=1e-3, atol=1e-4)


def test_inputs_that_are_alike_stay_as_they_are() -> None:
    whitening = whitening_of(torch.eye(300), 0.01, 16)
    assert isinstance(whitening, Whitening)
    rows = torch.randn(2, 300)
    torch.testing.assert_close(whitening.rows(rows), rows, rtol=1e-4, atol=1e-5)
