"""Strengthen what the compressed matrix itself writes along the direction."""

from __future__ import annotations

from typing import Literal

from aird.patching.formula import make_by_formula
from aird.patching.method import Method
from aird.settings.patches import FormulaSettings


class Scale(FormulaSettings):
    """Strengthen what the compressed matrix itself writes along r: row = alpha r^T W_c."""

    method: Literal["scale"] = "scale"

    @property
    def coefficients(self) -> tuple[float, float]:
        """The factors (a, b) of the compressed and of the original matrix."""
        return self.alpha, 0.0


METHOD = Method(
    settings=Scale,
    summary="each edited matrix writes more of its own output along the direction: row = alpha r^T W_c",
    make=make_by_formula,
    default=True,
    needs=frozenset({"original", "compressed", "direction"}),
)
