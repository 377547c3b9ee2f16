"""A patch method of another package: half of what `scale` adds, and half of what `project` puts back."""

from typing import Literal

from aird.patching.formula import make_by_formula
from aird.patching.method import Method
from aird.settings.patches import FormulaSettings


class MyMethod(FormulaSettings):
    """Strengthen the compressed matrix along r, and put back a part of the original: row = alpha r^T W_o / 2."""

    method: Literal["my_method"] = "my_method"

    @property
    def coefficients(self) -> tuple[float, float]:
        """The factors (a, b) of the compressed and of the original matrix."""
        return 0.0, self.alpha / 2


METHOD = Method(
    settings=MyMethod,
    summary="each edited matrix writes half of the original's output along the direction as well",
    make=make_by_formula,
    needs=frozenset({"original", "compressed", "direction"}),
)
