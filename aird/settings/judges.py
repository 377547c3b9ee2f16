"""What the settings of every served judge share. Each judge's own stand in its file of aird/evaluation/judges/."""

from __future__ import annotations

from pydantic import Field, model_validator

from aird.settings.base import Billions, Settings
from aird.settings.models import Chat
from aird.settings.sources import ModelSource


class JudgeSettings(Settings):
    """Base of the judges that are served."""

    source: ModelSource = Field(description="A hub repository or a local folder.")
    chat: Chat | None = Field(
        None,
        description="How it is addressed. A judge that thinks answers behind an empty thought.",
    )
    maximum_model_length: int = Field(2048, ge=16, description="Longest question plus answer, tokens.")
    gpus: int = Field(1, ge=1, description="GPUs of each job that asks the judge.")
    parameters: Billions | None = Field(None, description="Its parameters in billions, as `models.MODEL.parameters`.")
    maximum_new_tokens: int = Field(ge=1, description="Length limit of the judge's answer, tokens.")

    @model_validator(mode="after")
    def _loadable(self) -> JudgeSettings:
        if self.source.parts or self.source.file is not None:
            raise ValueError(
                "a judge needs a model in Hugging Face format; give `hub` without `file`, or the `path` of a folder"
            )
        return self

    @property
    def templated(self) -> bool:
        """Whether a text of the settings is all that the judge sees, without its chat template."""
        return False

    @property
    def judges_harmless(self) -> bool:
        """Whether it is asked about completions of harmless prompts too, as it says which completions refuse."""
        return False

    def imported(self) -> dict[str, object]:
        """Return what the import of its model depends on."""
        return {**self.model_dump(include={"source", "chat"}), "templated": self.templated}

    def asked(self) -> dict[str, object]:
        """Return the settings that its answers depend on; it is stored with its chat settings."""
        return self.model_dump(exclude={"gpus", "parameters", "chat"})
