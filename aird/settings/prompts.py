"""What a configuration says about a prompt set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from aird.settings.base import Name, Settings, Text
from aird.settings.sources import FileSource, refuse, require_one

Size = Annotated[int, Field(ge=1)]


class PromptSet(Settings):
    """A named list of instructions, read from one source or combined from other sets."""

    source: FileSource | None = Field(None, description="The file that holds the instructions.")
    combine: list[Name] | None = Field(
        None,
        min_length=1,
        description="Prompt sets to join, in order; their splits stay unless `splits` draws new ones.",
    )
    format: Literal["json", "jsonl", "yaml", "csv", "parquet", "lines"] | None = Field(
        None, description="Format of the source's file; required with a source."
    )
    records: Text | None = Field(None, description="Key of the list of records (json, yaml), if not at the top level.")
    field: Text | None = Field(
        None, description="A record's field with the instruction; required unless format is `lines`."
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
    def _complete(self) -> PromptSet:
        kind = require_one(self, ("source", "combine"))
        if kind == "combine":
            refuse(self, ("format", "records", "field", "split_field"), kind)
        elif self.format is None:
            raise ValueError("`format` is missing; write json, jsonl, yaml, csv, parquet or lines")
        elif self.format == "lines":
            refuse(self, ("records", "field", "split_field"), "format: lines")
        elif self.field is None:
            raise ValueError(
                f"`field` is missing; format {self.format} needs the name of the field with the instruction"
            )
        elif self.format not in ("json", "yaml"):
            refuse(self, ("records",), f"format: {self.format}")
        if self.split_field is not None and self.splits is not None:
            raise ValueError(
                "`split_field` and `splits` exclude each other; keep the first if the file says the split, "
                "the second to draw it"
            )
        return self
