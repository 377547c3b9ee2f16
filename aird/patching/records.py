"""What methods say about the patches that they made: the records of `statistics.json`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class EditRecord(TypedDict):
    """What the edit of one matrix changes: its Frobenius norm over that of W_c, and norms of r^T W over the original's.

    A ratio that would compare different inputs is None. Of learnt columns there is a cosine, without sign.
    """

    module: str
    relative_change: float
    row_norm_before: float | None
    row_norm_after: float | None
    cosine_with_direction: NotRequired[float]


class TrialRecord(TypedDict):
    """What a strength did on validation prompts: shares of refused prompts, and nats (`aird.patching.strength`)."""

    strength: float
    refusal: float
    over_refusal: float
    distance: float
    kl_harmless: float
    within_budgets: bool


# What decisions are read from: whether a reply begins as refusals do, or whether all of it is one.
Decisions = Literal["first_tokens", "replies"]


class ChoiceRecord(TypedDict):
    """How a strength was chosen.

    `decisions` says what these were read from. `distances` from the original's, by
    strength, and that of `unpatched`, are nats of first tokens, or shares of prompts decided otherwise. `learns` is
    `decisions` or `refusals`, of a patch that learnt something. Of each attack that was learnt from there are the
    `prompts` asked and those `refused`.
    """

    strength: float
    reason: str
    original: dict[str, float]
    budgets: dict[str, float]
    distances: dict[str, float]
    tried: list[TrialRecord]
    decisions: NotRequired[Decisions]
    validation_prompts: NotRequired[dict[str, int]]
    unpatched: NotRequired[dict[str, float]]
    learns: NotRequired[str]
    attacks: NotRequired[dict[str, dict[str, int]]]


class SiteRecord(TypedDict):
    """Where a direction was found; the SHA-256 is that of the float64 bytes of what a patch writes."""

    layer: int
    position: int
    sha256: NotRequired[str]
    rule: NotRequired[str | None]


class TokenShare(TypedDict):
    """What a token of the prompts with their replies carries of the error along a matrix's first singular direction.

    `position` is that of one of the template's own tokens, from 0, and behind the instruction from -1 backwards; it is
    None of all tokens of instructions together (`prompt`), and of replies (`reply`). `share` is 0 to 1.
    """

    token: str
    position: int | None
    share: float


class CompensationRecord(TypedDict):
    """What compensation found in one matrix: parts of its covariance-weighted squared error, 0 to 1.

    `left` is what the change at strength 1 leaves, `shares` what the first singular directions hold, each alone;
    `tokens` are those that carry most of the first one, none where there is no error.
    """

    left: float
    shares: list[float]
    tokens: list[TokenShare]


class PatchRecord(TypedDict, total=False):
    """What there is to say about a patch besides its settings.

    `not_edited` names what edited blocks write besides, each with the reason; `experts` are PEFT's names of experts'
    parameters (`target_parameters`); `compensation` is by matrix; `examples` and `epoch_losses` (nats per answer token)
    are those of a tuning.
    """

    blocks: list[int]
    edits: list[EditRecord]
    not_edited: list[str]
    experts: dict[str, list[str]]
    direction: SiteRecord
    own_direction: SiteRecord
    calibration: ChoiceRecord
    compensation: dict[str, CompensationRecord]
    examples: dict[str, int]
    epoch_losses: list[float]
