"""The whole configuration as one typed model. `loading` reads it, with errors that name the key and the fix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from aird.plugin import METHODS, RECIPES, OneOf
from aird.settings.base import ORIGINAL, PLAIN, EngineName, Name, Seed, Settings, Text
from aird.settings.compressions import CacheDtype, RecipeSettings
from aird.settings.directions import Directions
from aird.settings.models import Model
from aird.settings.patches import PatchSettings, Replies
from aird.settings.prompts import PromptSet
from aird.settings.suites import Serving, Suite
from aird.support.processor import Choice


class Configuration(Settings):
    """Everything that decides results. Where and how jobs run belongs into a profile."""

    plugins: list[Text] = Field([], description="Python files with plug-ins of your own (CONTRIBUTING.md).")
    seed: Seed = Field(42, description="Seed of every drawn split and sample.")
    prompt_sets: dict[Name, PromptSet] = Field(description="Named prompt sets.", min_length=1)
    directions: Directions = Field(description="How refusal directions are found.")
    models: dict[Name, Model] = Field(description="The chat models of the grid.", min_length=1)
    compressions: dict[Name, Annotated[RecipeSettings, OneOf(RECIPES)]] = Field(
        description="The compressions of the grid."
    )
    patches: dict[Name, Annotated[PatchSettings, OneOf(METHODS)]] = Field(
        {}, description="The repairs and controls of the grid."
    )
    replies: Replies = Field(Replies(), description="What calibrated patches learn from and are chosen by.")
    suites: dict[Name, Suite] = Field(description="What is measured on every cell of the grid.", min_length=1)
    hand_labels: Text | None = Field(
        None,
        description="A file of labels that a person gave to replies, as `aird label` writes it; how far the "
        "judges agree with it stands in `agreement.csv`.",
    )
    serving: Serving = Field(Serving(), description="How vLLM serves a checkpoint.")
    compute_dtype: Choice = Field(
        "measured",
        description="Type of the arithmetic on a processor: `measured` takes the faster of the checkpoint's own type "
        "and float32, by a measurement at the start; `checkpoint` takes the checkpoint's type, and `float32` that "
        "one. A GPU computes in the checkpoint's type. An import's proof and a refusal tuning always take float32.",
    )

    def compressions_of(self, model: str) -> list[str]:
        """Return the compressions of one model, without the original."""
        chosen = self.models[model].compressions
        names = [name for name in self.compressions if chosen is None or name in chosen]
        return [name for name in names if self.compressions[name].exists(model)]

    def engine_of(self, model: str, compression: str) -> EngineName:
        """Return who serves a checkpoint: what the compression or `serving` names, else llama.cpp a GGUF file."""
        named: EngineName | None = getattr(self.compressions.get(compression), "engine", None) or self.serving.engine
        return named or ("llama.cpp" if self.holds_gguf(model, compression) else "vllm")

    def cache_dtype_of(self, compression: str) -> CacheDtype | None:
        """Return the type of a compression's quantised key/value cache; None is the engine's own."""
        settings = self.compressions.get(compression)
        return None if settings is None else settings.cache_dtype

    def holds_gguf(self, model: str, compression: str) -> bool:
        """Return whether a checkpoint holds a GGUF file, which llama.cpp serves."""
        return compression != ORIGINAL and self.compressions[compression].holds_gguf(model)

    def patches_of(self, model: str, compression: str) -> list[str]:
        """Return the patches of one (model, compression) pair, without the plain one."""
        chosen = self.models[model].patches
        names = [name for name in self.patches if chosen is None or name in chosen]
        return [name for name in names if self._patches(name, compression)]

    def _patches(self, patch: str, compression: str) -> bool:
        only = self.patches[patch].compressions
        return compression in only if only is not None else compression != ORIGINAL

    def cells(self) -> Iterator[tuple[str, str, str]]:
        """Yield every (model, compression, patch) of the grid, in the configuration's order."""
        for model in self.models:
            for compression in [ORIGINAL, *self.compressions_of(model)]:
                for patch in [PLAIN, *self.patches_of(model, compression)]:
                    yield model, compression, patch
