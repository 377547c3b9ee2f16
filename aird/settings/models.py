"""What a configuration says about a model: its source, how it is addressed, and an optional refusal tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from aird.settings.base import Billions, Name, PromptSelection, Settings, Text
from aird.settings.sources import ModelSource
from aird.settings.tuning import TuningSettings


class RefusalTuning(TuningSettings):
    """A small LoRA tuning that teaches a model to refuse, merged into the checkpoint."""

    harmful: PromptSelection = Field(description="Instructions that get a refusal.")
    harmless: PromptSelection = Field(description="Instructions that keep the model's own answer.")
    strength: float = Field(1.0, gt=0, le=1, description="Part of the learnt change that is merged.")


ArgumentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
# What the chat template's caller decides itself; in words of Transformers' apply_chat_template.
RESERVED_ARGUMENTS = frozenset(
    "conversation messages tools documents chat_template add_generation_prompt continue_final_message tokenize padding "
    "truncation max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs".split()
)


class Thinking(Settings):
    """The tags around a model's thoughts."""

    start: Text = Field(description="Such as `<think>`.")
    end: Text = Field(description="Such as `</think>`.")

    @model_validator(mode="after")
    def _two_tags(self) -> Thinking:
        if self.start in self.end or self.end in self.start:
            raise ValueError("`start` and `end` must be two tags of which neither holds the other")
        return self


class Chat(Settings):
    """How a model is addressed, beyond what its chat template does by itself.

    It is stored in the checkpoint folder, and every use of the template follows it.
    """

    system_prompt: Text | None = Field(None, description="Replaces the template's own system prompt.")
    template_arguments: dict[ArgumentName, bool | int | float | str] = Field(
        {}, description="Values for the chat template, such as `enable_thinking: false`."
    )
    thinking: Thinking | None = Field(
        None, description="The tags around a model's thoughts, which are then kept apart."
    )
    thinks: bool = Field(True, description="`false`: it never thinks, though its template has such tags.")

    def in_words(self) -> str:
        """Return what differs from the defaults, as JSON."""
        return self.model_dump_json(exclude_defaults=True)

    @model_validator(mode="after")
    def _one_answer(self) -> Chat:
        if self.thinking is not None and not self.thinks:
            raise ValueError("`thinking` and `thinks: false` exclude each other; keep one of them")
        return self

    @field_validator("template_arguments")
    @classmethod
    def _free(cls, values: dict[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
        for name in sorted(values.keys() & RESERVED_ARGUMENTS):
            raise ValueError(f"sets {name}, which the workflow itself decides; leave it out")
        return values


class Model(Settings):
    """One chat model of the grid."""

    source: ModelSource = Field(description="Where the model comes from.")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="Working type of a dequantised GGUF file; no other source takes it."
    )
    trust_remote_code: bool = Field(
        False,
        description="Run the source's own modelling code; ready-made checkpoints of the model may bring the same only.",
    )
    chat: Chat | None = Field(None, description="How it is addressed; default: as its chat template says.")
    refusal_tuning: RefusalTuning | None = Field(None, description="Tune the model to refuse first.")
    gpus: int = Field(1, ge=1, description="GPUs that each job spreads the model over, where there are any.")
    parameters: Billions | None = Field(
        None,
        description="Billions of parameters, by which jobs ask for memory; default: counted, or before the import "
        "0.5 for a wheel and 8 for a hub.",
    )
    compressions: list[Name] | None = Field(
        None, description="Use only these compressions; default: all. `[]`: the original alone."
    )
    patches: list[Name] | None = Field(None, description="Use only these patches; default: all. `[]`: none.")
