"""What a configuration says about a patch: one member of the rank-1 family of AIRD."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from aird.settings.base import Name, Seed, Settings


class Patch(Settings):
    """A rank-1 edit W' = W_c + r r^T (a W_c + b W_o) of matrices that write to the residual stream."""

    method: Literal["scale", "project", "fit"] = Field(
        description="`scale`: a = alpha, b = 0, strengthen the compressed model's own output along r. "
        "`project`: a = -alpha, b = alpha, put back the original's output along r. "
        "`fit`: the row is fitted on the direction prompts, so that the compressed model writes along r what the "
        "original wrote (ridge regression, no gradient)."
    )
    alpha: float = Field(
        1.0,
        description="Strength of the edit; not 0. For `fit`, 1 asks for the original's own output along r, and more "
        "moves harmful prompts further away from harmless ones.",
    )
    blocks: Literal["source", "all"] | list[int] = Field(
        "source",
        description="Blocks to edit: `source` is the block that writes the direction's site, l* - 1; "
        "`all` is every block; a list names block indices, from 0.",
    )
    depth: int = Field(1, ge=1, description="With `source`: how many blocks, ending with that one.")
    ridge: float = Field(0.01, gt=0, description="For `fit`: penalty on the row, relative to its inputs' mean square.")
    direction: Literal["original", "own", "random"] = Field(
        "original", description="r of the original model, of the compressed model, or a random control."
    )
    seed: Seed = Field(0, description="Seed of the random direction.")
    compressions: list[Name] | None = Field(
        None, min_length=1, description="Patch only these; default: all but the original."
    )

    @field_validator("blocks", mode="before")
    @classmethod
    def _blocks(cls, blocks: Any) -> Any:
        # Before the union is tried: it would report one error for each of its types.
        if blocks in ("source", "all"):
            return blocks
        if not isinstance(blocks, list):
            raise ValueError("is neither source, all nor a list; write source, all or block indices, such as [8, 9]")
        if not blocks:
            raise ValueError("is an empty list; name at least one block, or write source or all")
        if any(type(block) is not int or block < 0 for block in blocks):
            raise ValueError("must hold block indices; write whole numbers from 0, such as [8, 9]")
        if len(set(blocks)) < len(blocks):
            raise ValueError("names a block twice; write each index once")
        return blocks

    @model_validator(mode="after")
    def _depth(self) -> Patch:
        if self.depth > 1 and self.blocks != "source":
            raise ValueError("depth counts the blocks up to the source, so it needs blocks: source; leave one out")
        return self

    @field_validator("alpha")
    @classmethod
    def _alpha(cls, alpha: float) -> float:
        if alpha == 0:
            raise ValueError("changes nothing; write another strength, or leave the patch out")
        return alpha
