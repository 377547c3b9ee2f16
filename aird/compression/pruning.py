"""The settings that all pruning recipes share."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from aird.settings.compressions import CalibrationSettings, WeightSettings, pattern_counts

Pattern = Literal["2:4", "4:8"]

# Unquoted, YAML 1.1 reads N:M as a number in base 60.
_BASE_60 = {124: "2:4", 248: "4:8"}


class PruningSettings(WeightSettings):
    """Base of the pruning recipes: matrices stay dense and hold zeros."""

    sparsity: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of zeros in each weight matrix, where no `pattern` gives it.",
    )
    pattern: Pattern | None = Field(
        None,
        description="That many zeros in each group of 4 or 8 input weights; without it, anywhere.",
    )

    @model_validator(mode="before")
    @classmethod
    def _sparsity_of_pattern(cls, values: Any) -> Any:
        # Filled in here, so that one compression has one representation, hence one name.
        if not isinstance(values, dict):
            return values
        pattern = values.get("pattern")
        if pattern in _BASE_60:
            wanted = _BASE_60[pattern]
            raise ValueError(f'write pattern: "{wanted}" in quotes; YAML reads {wanted} as the number {pattern}')
        if pattern in ("2:4", "4:8") and values.get("sparsity") is None:
            zeros, size = pattern_counts(pattern)
            return {**values, "sparsity": zeros / size}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> PruningSettings:
        if self.sparsity is None:
            raise ValueError('give `sparsity`, a number between 0 and 1, or `pattern`, "2:4" or "4:8"')
        if self.pattern is not None:
            zeros, size = pattern_counts(self.pattern)
            if self.sparsity != zeros / size:
                raise ValueError(
                    f"pattern {self.pattern} has sparsity {zeros / size}, not {self.sparsity}; "
                    "leave `sparsity` out, or `pattern`"
                )
        return self

    @property
    def target_sparsity(self) -> float | None:
        """The share of zeros in each matrix."""
        return self.sparsity

    @property
    def amount(self) -> str:
        """How much is pruned, in words."""
        pattern = f" in the pattern {self.pattern}" if self.pattern else ""
        return f"{100 * (self.sparsity or 0):.0f}%{pattern}"


class CalibratedPruningSettings(PruningSettings):
    """Base of the recipes by which llm-compressor prunes."""

    compresses_experts: ClassVar[bool | None] = None

    calibration: CalibrationSettings = Field(description="The prompts or texts whose activations the recipe sees.")

    @property
    def modifier(self) -> dict[str, object]:
        """What llm-compressor's modifier is made with."""
        # "0:0" means zeros anywhere. Targets are named, because some names match nothing without an error.
        return {"sparsity": self.sparsity, "mask_structure": self.pattern or "0:0", "targets": ["Linear"]}
