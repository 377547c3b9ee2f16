"""Whether a compressed matrix can be compared with the original's, entry by entry.

AWQ and SmoothQuant divide the input channels of a matrix by scales that the
norm, or the matrix, before it takes over: the model stays the same, the matrix
does not. Rotations (SpinQuant, QuaRot) leave no entry where it was. A relative
error, or an edit made of W_o and W_c, would then mean nothing.

    rescaled    W_c is R W_o S, with diagonal R and S, far better than it is W_o
    unrelated   it is not that either

Only non-zero entries of W_c count, so that pruning is no scale.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

# Rescaled: scales explain at least a fifth of what is left of W_c beyond a multiple of W_o. Rounding alone leaves
# them to explain 1 / d_in + 1 / d_out.
_EXPLAINED = 0.2
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
    multiple = kept * _scale(ours, kept, None)
    by_one = float((ours - multiple).square().sum())
    scaled = kept * _scale(ours, kept, 0)
    scaled = scaled * _scale(ours, scaled, 1)
    scaled = scaled * _scale(ours, scaled, 0)
    left = float((ours - scaled).square().sum())
    if total - left < _RELATED * total:
        return Relation(error, rescaled=False, unrelated=True)
    rescaled = left < (1 - _EXPLAINED) * by_one or by_one < (1 - _EXPLAINED_BY_ONE) * plain
    return Relation(error, rescaled, unrelated=False)


def common_factor(original: torch.Tensor, compressed: torch.Tensor) -> float | None:
    """Return by which one number W_c is W_o, but for rounding and pruning; None where three quarters of it are not.

    Args:
        original, compressed: [d_out, d_in], any float dtype.
    """
    ours, theirs = compressed.float(), original.float()
    kept = torch.where(ours != 0, theirs, 0.0)
    factor = float(_scale(ours, kept, None))
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


def _scale(ours: torch.Tensor, theirs: torch.Tensor, dimension: int | None) -> torch.Tensor:
    """Return the factors of `theirs` nearest to `ours` (least squares), one for each slice along the other dimension.

    `dimension` is the one that is summed over: 0 for a factor per column, 1 per row, None for one factor.
    """
    dimensions = [0, 1] if dimension is None else [dimension]
    squares = theirs.square().sum(dimensions, keepdim=True)
    products = (ours * theirs).sum(dimensions, keepdim=True)
    return torch.where(squares > 0, products / squares.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
