"""What a configuration says about prompt sets and text corpora."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from aird.settings.base import Name, Settings, Text
from aird.settings.sources import FileSource, refuse, require_one

Size = Annotated[int, Field(ge=1)]


class TextFile(Settings):
    """A file of texts, and how it is read."""

    source: FileSource | None = Field(None, description="The file that holds the texts.")
    format: Literal["json", "jsonl", "yaml", "csv", "parquet", "lines"] | None = Field(
        None, description="Format of the source's file; required with a source."
    )
    records: Text | None = Field(None, description="Key of the list of records (json, yaml), if not at the top level.")
    field: Text | None = Field(None, description="A record's field with the text; required unless format is `lines`.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self._check_format()
        return self

    def _check_format(self) -> None:
        if self.format is None:
            raise ValueError("`format` is missing; write json, jsonl, yaml, csv, parquet or lines")
        if self.format == "lines":
            refuse(self, ("records", "field"), "format: lines")
        elif self.field is None:
            raise ValueError(f"`field` is missing; format {self.format} needs the name of the field with the text")
        elif self.format not in ("json", "yaml"):
            refuse(self, ("records",), f"format: {self.format}")


class Corpus(TextFile):
    """A text corpus that compressions may be calibrated on."""

    source: FileSource = Field(description="The file that holds the texts.")


class PromptSet(TextFile):
    """A named list of instructions, read from one source or combined from other sets."""

    combine: list[Name] | None = Field(
        None,
        min_length=1,
        description="Prompt sets to join, in order; their splits stay unless `splits` draws new ones.",
    )
    split_field: Text | None = Field(None, description="A record's field with its split.")
    splits: dict[Name, Size] | None = Field(
        None,
        min_length=1,
        description="Sizes of the splits to draw; what is left over has no split.",
    )
    disjoint_from: list[Name] = Field(
        [], description="Drop instructions that also stand, exactly or nearly, in one of these sets."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        kind = require_one(self, ("source", "combine"))
        if kind == "combine":
            refuse(self, ("format", "records", "field", "split_field"), kind)
        else:
            self._check_format()
            if self.format == "lines":
                refuse(self, ("split_field",), "format: lines")
        if self.split_field is not None and self.splits is not None:
            raise ValueError(
                "`split_field` and `splits` exclude each other; keep the first if the file says the split, "
                "the second to draw it"
            )
        return self
