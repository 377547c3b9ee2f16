"""What rescaling and rotation are, and what is only rounding or pruning."""

from __future__ import annotations

import pytest
import torch

from aird.compression.recipes.magnitude import zero_smallest
from aird.models.rescaling import check_comparable, relation


def normal(rows: int = 96, columns: int = 160, seed: int = 0) -> torch.Tensor:
    return 0.05 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    groups = weight.reshape(len(weight), -1, 32)
    scale = groups.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 0.5)
    return ((groups / scale - 0.5).round() + 0.5).mul(scale).reshape(weight.shape)


W = normal()
PER_COLUMN, PER_ROW = 1 + torch.arange(160) % 5 / 4, 1 + torch.arange(96)[:, None] % 5 / 4
BY_INPUT = W.abs() * (1 + torch.arange(160) % 7)
WANDA = W.masked_fill(torch.le(BY_INPUT, BY_INPUT.median(dim=1, keepdim=True).values), 0)  # some columns go first

SAME = {
    "itself": W,
    "another type": W.bfloat16(),
    "8 bits": rounded(W, 8),
    "4 bits": rounded(W, 4),
    "2 bits": rounded(W, 2),
    "2 bits, shrunk": 0.8 * rounded(W, 2),
    "signs": W.sign() * W.abs().mean(),
    "half pruned": zero_smallest(W, 0.5),
    "90% pruned": zero_smallest(W, 0.9),
    "pruned by inputs": WANDA,
    "pruned by inputs, rounded": rounded(WANDA, 4) * (WANDA != 0),
    "all zero": 0 * W,
}
RESCALED = {
    "columns": W * PER_COLUMN,
    "columns, 4 bits": rounded(W * PER_COLUMN, 4),
    "columns, half pruned": zero_smallest(W * PER_COLUMN, 0.5),
    "a few columns, 4 bits": rounded(W * torch.where(torch.arange(160) % 10 == 0, 2.0, 1.0), 4),
    "rows, 4 bits": rounded(W * PER_ROW, 4),
    "rows and columns, 4 bits": rounded(W * PER_ROW * PER_COLUMN, 4),
    "one factor, 4 bits": rounded(1.7 * W, 4),
}
UNRELATED = {
    "another model": normal(seed=1),
    "rotated": W @ torch.linalg.qr(normal(160, 160, 2)).Q,
    "rotated output": torch.linalg.qr(normal(96, 96, 3)).Q @ W,
}


def test_small_columns_and_huge_entries_are_no_scales() -> None:
    """As in values and queries of Qwen2.5-0.5B: rounding enlarges what it does not zero, and errors of few entries weigh most."""
    spread = normal(128, 896) * torch.logspace(-2, 0, 896)
    step = spread.abs().amax(1, keepdim=True) / 7
    peaked = normal(128, 896)
    peaked[:, 5] *= 60
    for weight, coarse in ((spread, (spread / step).round() * step), (peaked, rounded(peaked, 4))):
        assert not relation(weight, coarse).rescaled
        assert relation(weight, rounded(weight * (1 + torch.arange(896) % 5 / 4), 4)).rescaled


@pytest.mark.parametrize("name", SAME)
def test_compressed(name: str) -> None:
    known = relation(W, SAME[name])
    assert not known.rescaled and not known.unrelated
    assert known.error == pytest.approx(float((SAME[name].float() - W).norm() / W.norm()), abs=1e-6)
    check_comparable(W, SAME[name], "module")


@pytest.mark.parametrize("name", RESCALED)
def test_rescaled(name: str) -> None:
    assert relation(W, RESCALED[name]).rescaled
    with pytest.raises(ValueError, match="down_proj was rescaled against what stands before it .*; use a method"):
        check_comparable(W, RESCALED[name], "down_proj")


@pytest.mark.parametrize("name", UNRELATED)
def test_unrelated(name: str) -> None:
    assert relation(W, UNRELATED[name]).unrelated
    with pytest.raises(
        ValueError, match="down_proj is not a compressed form of the original's matrix .relative error 1"
    ):
        check_comparable(W, UNRELATED[name], "down_proj")


def test_shapes() -> None:
    with pytest.raises(ValueError, match=r"shapes differ: \[160, 96\], the original's \[96, 160\]"):
        relation(W, W.T)
