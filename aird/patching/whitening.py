"""Rows in whitened inputs: steps along inputs that hardly vary are as long as along those that vary most.

    row = z P,   P^-2 = (C / m + w I) / (1 + w),

C is the mean of x x^T of a module's inputs x, m the mean of its eigenvalues, w the whitening. Of C the `RANK` largest
eigenvalues are kept as they are, and the others as their mean: with a few hundredths of m added they are all alike, and
a matrix of [d_in, d_in] need not be held for every module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from aird.patching.compensation import input_covariances
from aird.patching.edits import Edit
from aird.patching.replies import ReplySet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANK = 128  # eigenvectors that are kept
PASSES = 8  # of the search for them


@dataclass(frozen=True)
class Whitening:
    """P of one module.

    Attributes:
        basis: [d_in, k] float32, orthonormal.
        roots: [k] float32, the eigenvalues of P^-1 along it.
        rest: that of P^-1 along everything else.
    """

    basis: torch.Tensor
    roots: torch.Tensor
    rest: float

    def rows(self, whitened: torch.Tensor) -> torch.Tensor:
        """Return z P, of z [rank, d_in]."""
        return self._scaled(whitened, 1 / self.roots, 1 / self.rest)

    def whitened(self, rows: torch.Tensor) -> torch.Tensor:
        """Return z, of rows z P [rank, d_in]."""
        return self._scaled(rows, self.roots, self.rest)

    def _scaled(self, rows: torch.Tensor, along: torch.Tensor, rest: float) -> torch.Tensor:
        return rows * rest + ((rows @ self.basis) * (along - rest)) @ self.basis.T


def whitening_of(covariance: torch.Tensor, strength: float, rank: int = RANK) -> Whitening:
    """Return the whitening of a mean of x x^T, [d_in, d_in], with w = `strength`."""
    width = len(covariance)
    if rank < width // 2:
        # Subspace iteration of a symmetric matrix; its start is seeded, as its last digits depend on it.
        vectors = torch.randn(width, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        exact = covariance.double()
        for _ in range(PASSES):
            vectors = torch.linalg.qr(exact @ vectors).Q
        values, turned = torch.linalg.eigh(vectors.T @ exact @ vectors)
        vectors = vectors @ turned
    else:
        values, vectors = torch.linalg.eigh(covariance.double())
    values = values.clamp_min(0)
    total = covariance.diagonal().double().sum()
    mean = total / width
    rest = (total - values.sum()).clamp_min(0) / max(width - len(values), 1)
    # In parts of their mean, so that gradients keep their size: much whitening is then the identity.
    roots, other = (((value / mean + strength) / (1 + strength)).sqrt() for value in (values, rest))
    return Whitening(vectors.float(), roots.float(), float(other))


@torch.no_grad()
def whitenings(
    model: PreTrainedModel, edits: Sequence[Edit], replies: Sequence[ReplySet], strength: float
) -> list[Whitening]:
    """Return the whitening of the module of each edit, on its inputs in prompts with their replies.

    That of experts is the identity: each sees tokens of its own, of which there may be none.
    """
    sequences = [sequence for part in replies for sequence in part.sequences]
    modules = [edit.module for edit in edits if not edit.of_experts]
    found = {
        name: whitening_of(covariance, strength) for name, covariance in input_covariances(model, sequences, modules)
    }
    return [found.get(edit.module) or _identity(edit.down.shape[-1]) for edit in edits]


def _identity(width: int) -> Whitening:
    return Whitening(torch.empty(width, 0), torch.empty(0), 1.0)
