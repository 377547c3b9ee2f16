"""What a configuration says about an evaluation suite: what one start of an engine is asked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from aird.plugin import ATTACKS, JUDGES, OneOf
from aird.settings.attacks import RESERVED, AttackSettings
from aird.settings.base import Name, PromptSelection, Settings, Text
from aird.settings.judges import JudgeSettings

# How a patched checkpoint is served.
ADAPTER, MERGED, BOTH = "adapter", "merged", "both"
SYSTEM_PROMPT = "system_prompt"  # of a patch that is one, whatever the suite says


class Suite(Settings):
    """Prompts and tasks that are served together, in one start of an engine per checkpoint."""

    harmful: PromptSelection = Field(description="Instructions on which refusal and ASR are measured.")
    harmless: PromptSelection = Field(description="Instructions on which over-refusal and perplexity are measured.")
    maximum_new_tokens: int = Field(512, ge=1, description="Length limit of a completion, tokens.")
    think: bool = Field(
        False,
        description="Let models that think do so, instead of answering behind an empty thought.",
    )
    serve: Literal["adapter", "merged", "both"] = Field(
        "adapter",
        description="Serve a patch as an `adapter` beside the base (merged where the engine takes none), `merged`, "
        "or compare `both` in `summary.csv`.",
    )
    perplexity_answers: int | None = Field(
        None, ge=1, description="Harmless answers of the original for perplexity; default: all."
    )
    tasks: list[Text] = Field([], description="lm-eval tasks, or groups of them, for utility.")
    judge: Annotated[JudgeSettings, OneOf(JUDGES)] | None = Field(
        None, description="A model that judges the completions too."
    )
    judges: list[Text] = Field(
        [],
        description="Plug-ins that label each completion by its text (CONTRIBUTING.md).",
    )
    task_folder: Text | None = Field(None, description="Folder with lm-eval task files of your own.")
    task_limit: int | None = Field(None, ge=1, description="Documents of each task; default: all.")
    attacks: dict[Name, Annotated[AttackSettings, OneOf(ATTACKS)]] = Field(
        {}, description="Attacks by name, each put on the harmful prompts ([attacks](../docs/attacks.md))."
    )
    maximum_model_length: int | None = Field(
        None, ge=16, description="Longest prompt plus completion, tokens; default: that of `serving`."
    )

    @model_validator(mode="after")
    def _tasks(self) -> Suite:
        if not self.tasks and (self.task_folder is not None or self.task_limit is not None):
            raise ValueError(
                "`tasks` is missing, though task_folder or task_limit is given; name tasks, or leave those out"
            )
        return self

    @field_validator("judges")
    @classmethod
    def _label_texts(cls, judges: list[str]) -> list[str]:
        for name in judges:
            if JUDGES.load(name).settings is not None:
                raise ValueError(f"{name} is a model that is served; write it as the suite's `judge`")
        return judges

    @model_validator(mode="after")
    def _attacks(self) -> Suite:
        for name in RESERVED:
            if name in self.attacks:
                raise ValueError(f"attacks.{name}: tables use this name themselves; choose another")
        size = self.harmful.count
        for name, attack in self.attacks.items():
            if self.think and ATTACKS.of(attack).begins_answer:
                raise ValueError(
                    f"attacks.{name} decides how the answer begins, and `think: true` begins it with a thought; leave "
                    "one out"
                )
            if size is not None and attack.count is not None and attack.count > size:
                raise ValueError(f"attacks.{name}.count: the suite has {size} harmful prompts; write at most that")
        return self

    def asked(self) -> dict[str, object]:
        """Return the settings that completions and utility depend on: all but the judges, which only read.

        How a patch is served matters to patched checkpoints only, so it is no part of them.
        """
        return self.model_dump(exclude={"judge", "judges", "serve"})


class Serving(Settings):
    """Who serves checkpoints, and what is asked of every engine. How an engine is started stands below `engines`."""

    engine: Name | None = Field(
        None,
        description="The engine of compressions that name none; default: llama.cpp for GGUF files, vLLM for all "
        "others.",
    )
    maximum_model_length: int = Field(1024, ge=16, description="Longest prompt plus completion, tokens.")
    parity_prompts: int = Field(8, ge=1, description="Prompts on which engine and Transformers must agree.")
    parity_tolerance: float = Field(
        0.25,
        gt=0,
        description="How far first tokens' log-probabilities may differ on three quarters of them, nats.",
    )
