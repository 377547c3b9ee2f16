"""Put back what the original matrix wrote along the direction."""

from __future__ import annotations

from typing import Literal

from aird.patching.formula import make_by_formula
from aird.patching.method import Method
from aird.settings.patches import FormulaSettings


class Project(FormulaSettings):
    """Put back what the original matrix wrote along r: row = alpha r^T (W_o - W_c)."""

    method: Literal["project"] = "project"

    @property
    def coefficients(self) -> tuple[float, float]:
        """The factors (a, b) of the compressed and of the original matrix."""
        return -self.alpha, self.alpha


METHOD = Method(
    settings=Project,
    summary="each edited matrix writes the original matrix's output along the direction: row = alpha r^T (W_o - W_c)",
    make=make_by_formula,
    needs=frozenset({"original", "compressed", "direction"}),
)
