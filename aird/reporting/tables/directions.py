"""One row per checkpoint: its site, how it was chosen, its comparison with the original, claim C1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aird.prompts.sets import CLASSES
from aird.reporting.projections import separation
from aird.reporting.records import Records
from aird.reporting.table import PAIR, Column, Row, Table, at, interval, named, values

PROMPTS = [f"{kind}_{split}" for kind in CLASSES for split in ("train", "validation")]
VERIFIED = [
    (name, rate)
    for name in ("harmful", "harmful_ablated", "harmless", "harmless_added")
    for rate in ("refusal", "degenerate")
]
# Whose activations, along whose direction.
SEPARATIONS = {
    "separation_on_original": ("compressed", "original"),
    "separation_on_own": ("compressed", "own"),
    "original_separation": ("original", "original"),
}


def rows(records: Records) -> Iterator[Row]:
    """Yield a row per direction: its record, and of its checkpoint what else is there."""
    present = records.present
    for pair, direction in present["directions"].items():
        comparison = present["comparisons"].get(pair)
        yield {
            **named(pair),
            **direction,
            "cosmic": present["cosmic"].get(pair),
            "comparison": comparison,
            "separations": None if comparison is None else separations(comparison["projections"]),
            "verification": present["verifications"].get(pair),
        }


def separations(projections: Sequence[Row]) -> dict[str, float]:
    """Return how far the classes are apart: the compressed model's along both directions, the original's on its own."""
    by_class = {(row["states_of"], row["direction"], row["kind"]): row for row in projections}
    return {
        name: separation(*(by_class[whose, direction, kind] for kind in CLASSES))
        for name, (whose, direction) in SEPARATIONS.items()
    }


def sites(row: Row) -> str:
    """Return the three sites that resampled validation prompts choose most often."""
    return "; ".join(
        f"({site['layer']}, {site['position']}) {100 * site['share']:.0f}%" for site in row["stability"]["sites"][:3]
    )


def agrees(row: Row) -> bool | None:
    """Return whether COSMIC chooses the same site; None where it did not choose."""
    cosmic = row["cosmic"]
    return cosmic and all(cosmic[name] == row[name] for name in ("layer", "position"))


def resampled(names: str, says: str, dtype: str | None = None) -> list[Column]:
    """Return columns of what resampled validation prompts choose."""
    return values(names, "stability", says=says, dtype=dtype, prefix="resampled_")


def cosmic(names: str, says: str, dtype: str | None = None) -> list[Column]:
    """Return columns of what COSMIC chooses."""
    return values(names, "cosmic", says=says, dtype=dtype, prefix="cosmic_")


def spread(name: str) -> list[Column]:
    """Return the columns of resamples, or of a null, of a comparison."""
    return values("high low mean", "comparison", name, says=SPREAD, prefix=f"{name}_")


SPREAD = "over resamples of the prompts (`bootstrap`), or where nothing turned (`null`)"
FILTERED = "whether misjudged prompts could be left out"
HELD_OUT = "of held-out prompts, plain and with the direction ablated or added: refusal, and babble"
TABLE = Table(
    place=100,
    says=__doc__,
    records=("directions", "comparisons", "verifications", "cosmic"),
    rows=rows,
    columns=[
        *PAIR,
        *values("layer position", says="the chosen site"),
        *values(
            "rule survivors kl_limit", says="how it was chosen, how many candidates passed, KL limit in force (nats)"
        ),
        *values("induce kl bypass", says="its scores"),
        Column("norm", says="of the difference in means"),
        *resampled("same_site", says="share of resamples of the validation prompts that choose the same site"),
        *resampled("layer_low layer_high", says="2.5% and 97.5% quantiles of their layers", dtype="Int64"),
        Column("resampled_sites", sites, says="the three most frequent sites; all empty where COSMIC chose"),
        *cosmic("layer position", says="the site that COSMIC chooses", dtype="Int64"),
        *cosmic("rule", says="whether its KL limit was relaxed"),
        *cosmic("score addition ablation", says="its score, the sum of two cosines"),
        *cosmic("kl", says="KL divergence on harmless prompts with that candidate ablated, nats"),
        Column(
            "cosmic_agrees", agrees, says="whether that is the chosen site; empty where not computed", dtype="boolean"
        ),
        *(Column(f"n_{name}", at("prompts", name, "used"), says="prompts used") for name in PROMPTS),
        *(Column(f"filtered_{name}", at("prompts", name, "filtered"), says=FILTERED) for name in PROMPTS),
        *(Column(f"{rate}_{name}", at("verification", "rates", name, rate), says=HELD_OUT) for name, rate in VERIFIED),
        *values("ablation_p_value addition_p_value", "verification", says="McNemar"),
        *values(
            "cosine_same_site cosine_own_source norm_ratio",
            "comparison",
            says="with the original's, of the directions in use",
        ),
        *values(
            "cosine_same_site_shared cosine_own_source_shared",
            "comparison",
            says="of all training prompts of both models",
        ),
        *values(
            "cosine_same_site_p_value cosine_own_source_p_value",
            "comparison",
            says="two-sided, that it is below its null",
        ),
        *values("layer position", "comparison", "site", says="the original's site", prefix="original_"),
        *spread("cosine_same_site_bootstrap"),
        *spread("split_half_null"),
        *spread("cosine_own_source_bootstrap"),
        *spread("own_source_null"),
        *spread("norm_ratio_bootstrap"),
        *interval(
            "cosine_same_site_corrected",
            *("comparison", "cosine_same_site_corrected"),
            says="at the original's site, corrected for noise ([method.md](method.md#4-comparison)); empty where "
            "halves of one model's prompts have no direction in common",
        ),
        *values(" ".join(SEPARATIONS), "separations", says="distance of the classes in standard deviations"),
    ],
)
