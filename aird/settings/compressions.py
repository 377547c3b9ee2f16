"""What the settings of several recipes share. Each recipe's own stand in its file of aird/compression/recipes/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from aird.settings.base import Name, PromptSelection, Settings, Text
from aird.settings.sources import ModelSource, refuse, require_one
from aird.support.environments import Environment


def pattern_counts(pattern: str) -> tuple[int, int]:
    """Return (zeros, group size) of a pattern: "2:4" has at least 2 zeros in each group of 4."""
    zeros, size = pattern.split(":")
    return int(zeros), int(size)


class CalibrationSettings(Settings):
    """The prompts, or the sequences of a text corpus, whose activations a calibrated recipe sees."""

    prompt_set: str | None = Field(None, description="Prompt set to draw from.")
    split: str | None = Field(None, description="Split of the prompt set; default: train.")
    count: int | None = Field(None, gt=0, description="Number of prompts; default: 64.")
    corpus: str | None = Field(
        None,
        description="Text corpus, instead of a prompt set: texts in a drawn order, joined by the tokenizer's end "
        "token, are cut into sequences without a chat template.",
    )
    sequences: int | None = Field(None, gt=0, description="Number of sequences of the corpus; default: 128.")
    length: int | None = Field(None, gt=1, description="Tokens of each sequence; default: 2048.")
    seed: int = Field(0, ge=0, description="Seed of the draw of prompts, or of the order of the texts.")

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: Any) -> Any:
        # Filled in here, so that one calibration has one representation.
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        defaults: dict[str, object] = {"split": "train", "count": 64} if "prompt_set" in given else {}
        if "corpus" in given:
            defaults |= {"sequences": 128, "length": 2048}
        return {**defaults, **given}

    @model_validator(mode="after")
    def _one_kind(self) -> CalibrationSettings:
        kind = require_one(self, ("prompt_set", "corpus"))
        refuse(self, ("sequences", "length") if kind == "prompt_set" else ("split", "count"), kind)
        return self

    @model_serializer(mode="wrap")
    def _given(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out the keys of the other kind."""
        return {key: value for key, value in dump(self).items() if value is not None}

    @property
    def selection(self) -> PromptSelection | None:
        """The prompts; None with a corpus."""
        if self.prompt_set is None:
            return None
        # Its names are not checked by its own model; unknown ones are reported with the key where they stand.
        return PromptSelection.model_construct(set=self.prompt_set, split=self.split, count=self.count)

    @property
    def size(self) -> int:
        """Number of prompts or sequences."""
        return self.count or self.sequences or 0


class RecipeSettings(Settings):
    """Base of all recipes.

    Attributes:
        recipe: name of the recipe; each has its own literal.
        rescales_norms: the norms inside the decoder blocks change with the matrices that read them.
        rounds_embeddings: embeddings and the output head are rounded too.
        changes_weights: the checkpoint has other weights than the original, and so a direction of its own.
        compresses_experts: whether the recipe compresses the experts of a mixture that are stored matrix by matrix;
            None where llm-compressor has to make the very same matrices (`aird.models.experts.separate_modules`).
        cache_key: the key that says the type of the server's cached keys and values.
    """

    rescales_norms: ClassVar[bool] = False
    rounds_embeddings: ClassVar[bool] = False
    changes_weights: ClassVar[bool] = True
    compresses_experts: ClassVar[bool | None] = False
    cache_key: ClassVar[str] = "key_value_cache_dtype"

    recipe: str

    @property
    def environment(self) -> Environment | None:
        """The Python environment that the recipe runs in; None is that of the jobs."""
        return None

    @property
    def needs_calibration(self) -> bool:
        """Whether the recipe sees activations of prompts or texts (`calibration`)."""
        return "calibration" in type(self).model_fields

    @property
    def cache_dtype(self) -> str | None:
        """Type of the server's cached keys and values; None is the engine's own."""
        return getattr(self, self.cache_key, None)

    @property
    def ready_made(self) -> Mapping[str, ModelSource]:
        """Where the checkpoint of each model comes from, if somebody else made it; empty where it is made here."""
        return {}

    def exists(self, model: str) -> bool:
        """Return whether a model has this compression: a ready-made one only where it has a source."""
        return not self.ready_made or model in self.ready_made

    def holds_gguf(self, model: str) -> bool:
        """Return whether the checkpoint of a model holds a GGUF file."""
        return False

    @property
    def target_sparsity(self) -> float | None:
        """Share of zeros that the recipe promises in each matrix; None where it promises none."""
        return None

    @property
    def storage_bits(self) -> int | None:
        """Stored bits of one weight without scales; None where weights keep the original's dtype."""
        return getattr(self, "weight_bits", None)

    @property
    def storage_format(self) -> str:
        """How the compressed matrices are stored, as `aird.models.matrices.stored_format` names it."""
        return "dense"


class WeightSettings(RecipeSettings):
    """Base of the recipes that change weights; the server's cache may be quantised as well."""

    key_value_cache_dtype: Text | None = Field(
        None,
        description="Type of the server's cached keys and values (fp8, fp8_e5m2, q8_0 or q4_0); default: the "
        "engine's own.",
    )


class ServedSettings(WeightSettings):
    """Base of the recipes whose checkpoints may hold a GGUF file, so that more than one engine can serve them."""

    engine: Name | None = Field(
        None,
        description="Its engine; default: that of `serving`.",
    )
