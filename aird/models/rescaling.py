"""Whether a compressed matrix can be compared with the original's, entry by entry.

AWQ and SmoothQuant divide the input channels of a matrix by scales that the
norm, or the matrix, before it takes over: the model stays the same, the matrix
does not. Rotations (SpinQuant, QuaRot) leave no entry where it was. A relative
error, or an edit made of W_o and W_c, would then mean nothing.

    rescaled    W_c is R W_o S, with diagonal R and S, far better than it is W_o
    unrelated   it is not that either

Only non-zero entries of W_c count, so that pruning is no scale. For scales only those count that lie well above the
step of the rounding: of smaller ones rounding enlarges whatever it does not make zero, which looks like a scale where a
whole column is small.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

# Rescaled: scales explain at least a fifth of what is left of W_c beyond a multiple of W_o. Of rounding alone they
# explain their number over that of the entries, which comes on top.
_EXPLAINED = 0.2
# They change entries by at least so much; less is a second rounding of numbers that were rounded before.
_CHANGED = 0.01
# They bring the median entry nearer by at least this share of its distance.
_NEARER = 0.02
# Entries count from so many steps of the rounding on, unless that leaves fewer than four for each scale.
_STEPS = 1.5
_ENTRIES_PER_SCALE = 4
# A multiple of W_o, the same for all entries: half of the difference. Rounding to 2 bits shrinks by a fifth.
_EXPLAINED_BY_ONE = 0.5
# Unrelated: W_o and scales explain less than that of W_c. Signs alone keep 0.64 of a normal matrix.
_RELATED = 0.25
# A multiple of W_o: one factor explains at least so much. Rounding to 3 bits leaves more.
_MULTIPLE = 0.75
# Differences below this relative size are another rounding of the same numbers.
_SAME = 1e-3


class Relation(NamedTuple):
    """How a compressed matrix relates to the original's.

    Attributes:
        error: Frobenius norm of W_c - W_o relative to that of W_o.
        rescaled: rows or columns were rescaled.
        unrelated: the two are not the same matrix at all.
    """

    error: float
    rescaled: bool
    unrelated: bool


def relation(original: torch.Tensor, compressed: torch.Tensor) -> Relation:
    """Return how a compressed matrix relates to the original's.

    Args:
        original, compressed: [d_out, d_in], any float dtype.

    Raises:
        ValueError: their shapes differ.
    """
    if original.shape != compressed.shape:
        raise ValueError(f"shapes differ: {list(compressed.shape)}, the original's {list(original.shape)}")
    ours, theirs = compressed.float(), original.float()
    size = float(theirs.square().sum())
    error = (float((ours - theirs).square().sum()) / size) ** 0.5 if size else 0.0
    kept = torch.where(ours != 0, theirs, 0.0)
    total = float(ours.square().sum())
    plain = float((ours - kept).square().sum())
    if plain <= _SAME**2 * total:
        return Relation(error, rescaled=False, unrelated=False)
    by_one = float((ours - _nearest(ours, kept) * kept).square().sum())
    scaled = _scaled(ours, kept)
    left = (ours - scaled).square().sum(1)
    if total - float(left.sum()) < _RELATED * total:
        return Relation(error, rescaled=False, unrelated=True)
    rescaled = by_one < (1 - _EXPLAINED_BY_ONE) * plain or _explains(ours, kept, scaled, left)
    return Relation(error, rescaled, unrelated=False)


def _explains(ours: torch.Tensor, theirs: torch.Tensor, scaled: torch.Tensor, left: torch.Tensor) -> bool:
    """Tell whether scales of rows and columns explain the difference of entries, both zero where none count.

    `left` is what the `scaled` ones leave of each row, squared and summed.
    """
    # Errors of rounding are spread evenly over a step.
    step = (12 * left / torch.count_nonzero(ours, 1).clamp_min(1)).sqrt()
    large = scaled.abs() > _STEPS * step[:, None]
    scales = sum(ours.shape)
    if torch.count_nonzero(large) >= _ENTRIES_PER_SCALE * scales:
        ours, theirs = torch.where(large, ours, 0.0), torch.where(large, theirs, 0.0)
    by_chance = scales / max(1, int(torch.count_nonzero(ours)))
    before, after = ours - _nearest(ours, theirs) * theirs, ours - _scaled(ours, theirs)
    whole = float(before.square().sum())
    explained = whole - float(after.square().sum())
    if not (explained > (_EXPLAINED + by_chance) * whole and explained > _CHANGED**2 * float(ours.square().sum())):
        return False
    # A few huge entries can be all of that: scales take over their rounding errors, and the others come no nearer.
    nearer = math.sqrt(max(0.0, 1 - by_chance)) - _NEARER
    counted = ours != 0
    return float(after[counted].abs().median()) < nearer * float(before[counted].abs().median())


def common_factor(original: torch.Tensor, compressed: torch.Tensor) -> float | None:
    """Return by which one number W_c is W_o, but for rounding and pruning; None where three quarters of it are not.

    Args:
        original, compressed: [d_out, d_in], any float dtype.
    """
    ours, theirs = compressed.float(), original.float()
    kept = torch.where(ours != 0, theirs, 0.0)
    factor = _nearest(ours, kept)
    left = float((ours - factor * kept).square().sum())
    return factor if left < (1 - _MULTIPLE) * float(ours.square().sum()) else None


def check_comparable(original: torch.Tensor, compressed: torch.Tensor, module: str) -> None:
    """Check that W_o and W_c of a module may be compared or combined entry by entry.

    Args:
        original, compressed: [d_out, d_in], any float dtype.
        module: its name, for the message.

    Raises:
        ValueError: it was rescaled or rotated by what compressed it, or belongs to another model.
    """
    known = relation(original, compressed)
    if known.rescaled:
        raise ValueError(
            f"{module} was rescaled against what stands before it (AWQ, SmoothQuant), so it cannot be compared with "
            "the original's matrix; use a method that looks at the compressed matrix alone (scale, calibrate)"
        )
    if known.unrelated:
        raise ValueError(
            f"{module} is not a compressed form of the original's matrix (relative error {known.error:.2f}): the "
            "checkpoint was rotated (SpinQuant, QuaRot), or was made from another model"
        )


def _nearest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the factor of `theirs` that is nearest to `ours` (least squares)."""
    return float(_ratio((ours * theirs).sum(), theirs.square().sum()))


def _scaled(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return `theirs` with its columns, rows and columns again scaled to be nearest to `ours` (least squares)."""
    products, squares = ours * theirs, theirs.square()
    columns = _ratio(products.sum(0), squares.sum(0))
    rows = _ratio(products @ columns, squares @ columns.square())
    columns = _ratio(rows @ products, rows.square() @ squares)
    return rows[:, None] * theirs * columns


def _ratio(products: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    return torch.where(squares > 0, products / squares.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
