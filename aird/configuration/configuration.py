"""The whole configuration as one typed model. `loading` reads it, with errors that name the key and the fix."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated

from pydantic import Field

from aird.evaluation.engine import Engine
from aird.patching.methods import method_of
from aird.plugin import ENGINES, METHODS, RECIPES, EachOf, OneOf, PluginError
from aird.settings.base import ORIGINAL, PLAIN, Name, Seed, Settings, Text
from aird.settings.compressions import RecipeSettings
from aird.settings.directions import Directions
from aird.settings.engines import Cell, EngineSettings
from aird.settings.models import Model
from aird.settings.patches import PatchSettings, Replies
from aird.settings.prompts import Corpus, PromptSet
from aird.settings.suites import Serving, Suite
from aird.settings.weights import WeightForm
from aird.support.processor import Choice


class Configuration(Settings):
    """Everything that decides results. A profile (`profiles/`) says where and how jobs run."""

    plugins: list[Text] = Field([], description="Python files with plug-ins of your own (CONTRIBUTING.md).")
    seed: Seed = Field(42, description="Seed of every drawn split and sample.")
    prompt_sets: dict[Name, PromptSet] = Field(description="Named prompt sets.", min_length=1)
    corpora: dict[Name, Corpus] = Field({}, description="Named text corpora.")
    directions: Directions = Field(description="How refusal directions are found.")
    models: dict[Name, Model] = Field(description="The chat models of the grid.", min_length=1)
    compressions: dict[Name, Annotated[RecipeSettings, OneOf(RECIPES)]] = Field(
        description="The compressions of the grid."
    )
    patches: dict[Name, Annotated[PatchSettings, OneOf(METHODS)]] = Field(
        {}, description="The repairs and controls of the grid."
    )
    replies: Replies = Field(Replies(), description="What patches learn from and are chosen by.")
    suites: dict[Name, Suite] = Field(description="What is measured on every cell of the grid.", min_length=1)
    hand_labels: Text | None = Field(
        None,
        description="Labels by `aird label`, for `agreement.csv`.",
    )
    serving: Serving = Field(Serving(), description="Who serves checkpoints, and what is asked of every engine.")
    engines: Annotated[dict[str, EngineSettings], EachOf(ENGINES, Settings, "How engines are started.")] = Field(
        {}, description="Engines by their names, each with its own settings."
    )
    compute_dtype: Choice = Field(
        "measured",
        description="Type of the arithmetic on a processor: `measured` takes the faster of the checkpoint's type and "
        "float32. A GPU takes the checkpoint's type; imports' proofs and refusal tunings take float32.",
    )

    def compressions_of(self, model: str) -> list[str]:
        """Return the compressions of one model, without the original."""
        chosen = self.models[model].compressions
        names = [name for name in self.compressions if chosen is None or name in chosen]
        return [name for name in names if self.compressions[name].exists(model)]

    def learnt_set(self, kind: str) -> str:
        """Return the prompt set that patches learn from and are chosen by, of harmful or harmless prompts."""
        named: str = getattr(self.replies, kind) or getattr(self.directions, kind)
        return named

    @cached_property
    def engine_kinds(self) -> dict[str, type[Engine]]:
        """All engines by their names."""
        return {name: ENGINES.load(name) for name in ENGINES.names()}

    def default_engine(self, weights: WeightForm) -> str:
        """Return the name of the engine that serves a form of weights where none is named.

        Raises:
            PluginError: there is none, or more than one.
        """
        names = [name for name, kind in self.engine_kinds.items() if kind.default and kind.weights == weights]
        if len(names) != 1:
            raise PluginError(f"one engine is to be the default for weights {weights} (found: {', '.join(names)})")
        return names[0]

    def engine_of(self, model: str, compression: str) -> str:
        """Return who serves a checkpoint: what the compression or `serving` names, else the default for its weights."""
        named: str | None = getattr(self.compressions.get(compression), "engine", None) or self.serving.engine
        return named or self.default_engine(
            WeightForm.GGUF_FILE if self.holds_gguf(model, compression) else WeightForm.AS_STORED
        )

    @property
    def judge_engine(self) -> str:
        """Who serves models that judge."""
        return self.default_engine(WeightForm.AS_STORED)

    def engine_settings(self, name: str) -> EngineSettings:
        """Return how an engine is started."""
        return self.engines.get(name) or self.engine_kinds[name].settings()

    def engines_used(self) -> list[str]:
        """Return the engines of the grid and of its judges."""
        names = {self.engine_of(model, compression) for model, compression, _ in self.cells()}
        judged = any(suite.judge is not None for suite in self.suites.values())
        return sorted(names | ({self.judge_engine} if judged else set()))

    def served_cell(self, model: str, compression: str, patch: str) -> Cell:
        """Return what an engine serves for a cell: the plain checkpoint where the patch changes no weights."""
        changes = patch != PLAIN and method_of(self.patches[patch]).adapter
        return model, compression, patch if changes else PLAIN

    def cache_dtype_of(self, compression: str) -> str | None:
        """Return the type of a compression's quantised key/value cache; None is the engine's own."""
        settings = self.compressions.get(compression)
        return None if settings is None else settings.cache_dtype

    def holds_gguf(self, model: str, compression: str) -> bool:
        """Return whether a checkpoint holds a GGUF file."""
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
