"""Take a compressed checkpoint that somebody else made (`aird.compression.ready_made` imports it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from aird.compression.recipe import Recipe
from aird.settings.base import Name
from aird.settings.compressions import ServedSettings
from aird.settings.sources import ModelSource


class Given(ServedSettings):
    """Import a compressed checkpoint that somebody else made, and measure it as it is (docs/checkpoints.md).

    It exists for the models that `sources` names, and for no other.
    """

    recipe: Literal["given"] = "given"
    sources: dict[Name, ModelSource] = Field(
        description="The compressed checkpoint of each model that has one.",
        min_length=1,
    )

    @property
    def ready_made(self) -> Mapping[str, ModelSource]:
        """Where the checkpoint of each model comes from."""
        return self.sources

    def holds_gguf(self, model: str) -> bool:
        """Return whether the model's source is a GGUF file, which stays in the checkpoint."""
        return self.sources[model].is_gguf


RECIPE = Recipe(settings=Given, title="a ready-made checkpoint", gpu=False)
