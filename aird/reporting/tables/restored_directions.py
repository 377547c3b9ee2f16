"""Does the original's direction come back in patched checkpoints? Made where `directions.patched` names patches.

One row per checkpoint: the original, each compressed one (`plain`), and each with a patch.
"""

from __future__ import annotations

from collections.abc import Iterable

from aird.prompts.sets import CLASSES
from aird.reporting.projections import separation
from aird.reporting.records import Cell, Records
from aird.reporting.table import CELL, Column, Row, Table, at, interval, named, values
from aird.settings.base import ORIGINAL, PLAIN

UNKNOWN = dict.fromkeys(("value", "low", "high"))
VERIFIED = ("harmful", "harmful_ablated", "harmless", "harmless_added")


def rows(records: Records) -> Iterable[Row]:
    """Return a row per checkpoint of a comparison: the original, then of each compression plain and patched ones."""
    found: dict[Cell, dict[str, object]] = {}
    for (model, compression, patch), record in records.present["restorations"].items():
        for cell, name in (
            ((model, ORIGINAL, PLAIN), "original"),
            ((model, compression, PLAIN), "compressed"),
            ((model, compression, patch), "patched"),
        ):
            if cell not in found:
                found[cell] = {**named(cell), **record["site"], **activations(record["checkpoints"][name])}
                found[cell] |= {"cosine_gain": UNKNOWN, **verified(records, cell)}
        found[model, compression, patch]["cosine_gain"] = record["corrected_cosine_gain"]
    return found.values()


def activations(checkpoint: Row) -> Row:
    """Return what the activations of one checkpoint say, at the site of the original's direction."""
    projected = checkpoint["projections"]
    return {
        "corrected_cosine": checkpoint["corrected_cosine"],
        "norm_ratio": {**checkpoint["norm_ratio_bootstrap"], "value": checkpoint["norm_ratio"]},
        **{f"{kind}_mean": projected[kind]["mean"] for kind in CLASSES},
        "separation": separation(*(projected[kind] for kind in CLASSES)),
    }


def verified(records: Records, cell: Cell) -> Row:
    """Return what a checkpoint refuses, and along the original's direction r.

    An unpatched checkpoint was verified with its own direction: of a compressed one only what is refused without an
    intervention is taken.
    """
    plain = cell[2] == PLAIN
    kind, key = ("verifications", cell[:2]) if plain else ("examinations", cell)
    own = records.present[kind].get(key, {"rates": {}})
    along_r = not plain or cell[1] == ORIGINAL
    rates = {name: own["rates"].get(name) if along_r or name in CLASSES else None for name in VERIFIED}
    p_values = {name: own.get(name) if along_r else None for name in ("ablation_p_value", "addition_p_value")}
    return {**rates, **p_values}


def refusal(name: str, says: str) -> list[Column]:
    """Return the columns of a refusal rate and its interval."""
    ends = {"": "refusal", "_low": "refusal_low", "_high": "refusal_high"}
    return [Column(f"refusal_{name}{end}", at(name, key), says=says) for end, key in ends.items()]


TABLE = Table(
    place=160,
    says=__doc__,
    records=("restorations", "examinations", "verifications"),
    where="patched",
    rows=rows,
    columns=[
        *CELL,
        *values("layer position", says="the site of the original's direction r"),
        *interval(
            *("corrected_cosine", "corrected_cosine"),
            says="of the difference in means with the original's, corrected for noise",
        ),
        *interval("cosine_gain", "cosine_gain", says="how far the patch raises it, over the same resamples"),
        *interval("norm_ratio", "norm_ratio", says="of the differences in means"),
        *values("harmful_mean harmless_mean", says="mean component of the activations along r"),
        Column("separation", says="distance of these means in standard deviations"),
        *refusal("harmful", says="refusal of held-out harmful prompts"),
        *refusal("harmful_ablated", says="with r ablated; empty for a plain compressed one, verified with its own"),
        *refusal("harmless", says="refusal of held-out harmless prompts"),
        *refusal("harmless_added", says="with r added; empty as above"),
        *values("ablation_p_value addition_p_value", says="McNemar"),
    ],
)
