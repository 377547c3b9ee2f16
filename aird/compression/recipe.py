"""What every recipe says of itself, and what it is given. The recipes stand in aird/compression/recipes/."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aird.settings.compressions import RecipeSettings

if TYPE_CHECKING:
    from aird.models.checkpoint import Checkpoint

ABSENT: Any = None


@dataclass(frozen=True)
class RecipeInputs:
    """What a checkpoint is compressed from. What a recipe does not need is absent, None.

    Attributes:
        source: the checkpoint to compress.
        calibration: token ids of each calibration prompt or sequence.
        python: the interpreter of the recipe's environment (`RecipeSettings.environment`).
    """

    source: Checkpoint
    calibration: list[list[int]] | None = None
    python: Path = ABSENT


@dataclass(frozen=True)
class Recipe:
    """One way to compress.

    Attributes:
        settings: the model of its settings; its field `recipe` is a literal with the recipe's name.
        title: what the report calls it, such as "{settings.weight_bits}-bit rounding".
        write: writes safetensors weights (and, if it quantises, a config.json with a `quantization_config`) into an
            existing, empty folder. None where a checkpoint is imported (`RecipeSettings.ready_made`).
        gpu: whether it computes on a GPU where there is one.
    """

    settings: type[RecipeSettings]
    title: str
    write: Callable[[Any, RecipeInputs, Path], None] | None = None
    gpu: bool = True
