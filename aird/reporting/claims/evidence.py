"""The records that the claims rest on, with what the claims read of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from aird.reporting.records import Cell, Pair, Score, refused
from aird.settings.base import ORIGINAL, PLAIN
from aird.support.statistics import Estimate, PairedComparison, Resampled

if TYPE_CHECKING:
    from aird.reporting.records import Records


class Interval(TypedDict):
    """A value with its 95% interval; the value is None where it is undefined."""

    value: float | None
    low: float
    high: float


class CorrectedCosine(Interval):
    """A cosine corrected for noise, and how many harmful prompts it rests on."""

    n_harmful: int


class SourceSite(TypedDict):
    """How the source site moved (`aird.directions.source_site.compare_sites`)."""

    layers_moved: int
    layers_low: int | None
    layers_high: int | None
    same_site_original: float | None
    same_site_compressed: float | None
    resamples: int
    p_value: float


class Comparison(TypedDict):
    """A compressed checkpoint's direction beside the original's."""

    cosine_same_site_corrected: CorrectedCosine
    source_site: SourceSite


class Direction(TypedDict):
    """A chosen direction."""

    layer: int
    position: int
    rule: str


class Verification(TypedDict):
    """By harmful, harmful_ablated, harmless and harmless_added: what was `refused` of the held-out prompts."""

    labels: Mapping[str, Mapping[str, list[bool]]]


class Restoration(TypedDict):
    """The `corrected_cosine` of the checkpoints original, compressed and patched, at the original's site."""

    checkpoints: Mapping[str, Mapping[str, CorrectedCosine]]
    corrected_cosine_gain: Interval


@dataclass(frozen=True)
class Evidence:
    """The records of all nodes that the claims rest on.

    Attributes:
        directions, verifications: (model, compression) to the records of those nodes.
        comparisons: the same, without the original.
        scores: (suite, (model, compression, patch)) to the record of the scores node.
        pruned: names of the compressions that prune; the others quantise, but for those that came ready-made.
        random: names of the controls, along a random direction or with learnt columns.
        controls: patch to its matched controls (`aird.reporting.names.matched_controls`).
        seed: of resamples.
        restorations, examinations: (model, compression, patch) to the comparison and the verification of a patched
            checkpoint, where they were asked for.
        ready_made: names of the ready-made compressions: whether those prune is not known.
    """

    directions: Mapping[Pair, Direction]
    verifications: Mapping[Pair, Verification]
    comparisons: Mapping[Pair, Comparison]
    scores: Mapping[tuple[str, Cell], Score]
    pruned: frozenset[str]
    random: frozenset[str]
    controls: Mapping[str, Sequence[str]]
    seed: int
    restorations: Mapping[Cell, Restoration] = field(default_factory=dict)
    examinations: Mapping[Cell, Verification] = field(default_factory=dict)
    ready_made: frozenset[str] = frozenset()

    @classmethod
    def of(cls, records: Records) -> Evidence:
        """Return what a grid's records hold."""
        grid, present = records.grid, records.present
        return cls(
            present["directions"],
            present["verifications"],
            present["comparisons"],
            records.scores,
            frozenset(grid["pruned"]),
            frozenset(grid["random"]),
            grid["controls"],
            grid["seed"],
            present["restorations"],
            present["examinations"],
            frozenset(grid["ready_made"]),
        )

    def compressed(self, model: str, suite: str, patch: str = PLAIN) -> Iterator[tuple[str, Score]]:
        """Yield each compression of a model that was scored with a patch, and its scores."""
        for (name, (owner, compression, own)), score in self.scores.items():
            if (name, owner, own) == (suite, model, patch) and compression != ORIGINAL:
                yield compression, score

    def score(self, model: str, suite: str, compression: str, patch: str = PLAIN) -> Score:
        """Return the scores of one checkpoint."""
        return self.scores[suite, (model, compression, patch)]

    def patches(self, model: str, suite: str) -> list[str]:
        """Return the patches of a model that were scored."""
        cells = (cell for name, cell in self.scores if (name, cell[0]) == (suite, model))
        return list(dict.fromkeys(patch for _, _, patch in cells if patch != PLAIN))

    def names_a_move(self, compression: str) -> bool:
        """Return whether a compression's statements are that something moves, and not that it is kept."""
        return compression in self.pruned | self.ready_made


def estimate(record: Interval) -> Estimate:
    """Return a record's value, NaN where it is undefined, with its interval."""
    return Estimate(known(record["value"]), record["low"], record["high"])


def resampled(cosine: CorrectedCosine) -> Resampled:
    """Return a corrected cosine with the harmful prompts that it rests on."""
    return Resampled(cosine["n_harmful"], estimate(cosine))


def known(value: float | None) -> float:
    """Return a number, NaN where it is undefined."""
    return math.nan if value is None else value


def compare(kind: str, before: Score, after: Score) -> PairedComparison:
    """Compare which prompts of a kind (`harmful`, `harmless`) two records of scores say were refused."""
    return PairedComparison.of(refused(before, kind), refused(after, kind))
