"""The finding in words: a few sentences per compression, from the tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas

from aird.claims import ALL
from aird.verdicts import SIGNIFICANT


def findings(
    summary: pandas.DataFrame, paired: pandas.DataFrame, directions: pandas.DataFrame, claims: pandas.DataFrame
) -> Iterator[str]:
    """Yield a sentence or two per model, compression and patch, and one per claim.

    Args:
        summary, paired, directions, claims: the tables of the same names.
    """
    for suite, model in summary[["suite", "model"]].drop_duplicates().itertuples(index=False, name=None):
        rows = summary[(summary.suite == suite) & (summary.model == model)]
        tests = paired[(paired.suite == suite) & (paired.model == model)]
        original = rows[rows.compression == "original"].iloc[0]
        yield (
            f"{model}, suite {suite}: the original refuses {percent(original.refusal)} of {original.n} harmful prompts "
            f"and {percent(original.over_refusal)} of the harmless ones."
        )
        yield from _repaired(rows)
        for compression in rows.compression.drop_duplicates():
            if compression != "original":
                sites = directions[(directions.model == model) & (directions.compression == compression)]
                yield from _compression(rows[rows.compression == compression], tests, sites.iloc[0])
        yield from _second_opinions(directions[directions.model == model])
        yield from _claims(claims[(claims.model == model) & claims.suite.isin(("", suite))])


def _second_opinions(directions: pandas.DataFrame) -> Iterator[str]:
    """Yield how firm the choice of each site is, and COSMIC's where it is another."""
    for row in directions.itertuples():
        other = "agrees" if row.cosmic_agrees else f"chooses ({row.cosmic_layer}, {row.cosmic_position})"
        yield (
            f"  {row.compression}: site ({row.layer}, {row.position}), by {row.rule}; resampled prompts choose it in "
            f"{percent(row.resampled_same_site)} of cases; COSMIC {other}."
        )


@dataclass(frozen=True)
class Overall:
    """A verdict over all compressions of a model, and those on each of them: (compression, verdict)."""

    claim: str
    patch: str
    statement: str
    verdict: str
    reason: str
    each: list[tuple[str, str]]


def overall_verdicts(claims: pandas.DataFrame) -> Iterator[Overall]:
    """Yield the verdict on each claim over all compressions.

    Args:
        claims: rows of one model and suite of the table of that name; no patch is empty text.
    """
    for overall in claims[claims.compression == ALL].itertuples():
        same = claims[(claims.claim == overall.claim) & (claims.patch == overall.patch) & (claims.compression != ALL)]
        # C3 asks another question of each compression than of all of them.
        each = same if overall.claim == "C3" else same[same.statement == overall.statement]
        pairs = list(zip(each.compression, each.verdict, strict=True))
        yield Overall(
            overall.claim, overall.patch, overall.statement, overall.verdict, str(overall.reason or ""), pairs
        )


def _claims(claims: pandas.DataFrame) -> Iterator[str]:
    for overall in overall_verdicts(claims):
        listed = ", ".join(f"{compression}: {verdict}" for compression, verdict in overall.each)
        patch = f", {overall.patch}" if overall.patch else ""
        reason = f" ({overall.reason})" if overall.claim == "C3" and overall.reason else ""
        yield f"  {overall.claim}{patch}, {overall.statement}: {overall.verdict.upper()}{reason}; {listed}."


def _repaired(rows: pandas.DataFrame) -> Iterator[str]:
    """Yield one sentence with what compression left of refusal, and what the patch that refuses most brings back."""
    parts = []
    for compression in rows.compression.drop_duplicates():
        cells = rows[rows.compression == compression]
        patched = cells[cells.patch != "plain"]
        if compression == "original" or patched.empty:
            continue
        plain, best = cells[cells.patch == "plain"].iloc[0], patched.loc[patched.refusal.idxmax()]
        parts.append(
            f"{compression} refuses {percent(plain.refusal)}, and {percent(best.refusal)} with {best.patch} "
            f"(over-refusal {percent(best.over_refusal)})"
        )
    if parts:
        yield f"After compression, plain and with the patch that refuses most: {'; '.join(parts)}."


def percent(rate: float) -> str:
    """Return a rate as per cent with one decimal."""
    return f"{100 * rate:.1f}%"


def _compression(rows: pandas.DataFrame, tests: pandas.DataFrame, site: pandas.Series) -> Iterator[str]:
    plain = rows[rows.patch == "plain"].iloc[0]
    test = _test(tests, plain, "original")
    what = f"changed refusal by {_points(test.difference)} points"
    if test.p_value >= SIGNIFICANT:
        what = f"did not change refusal measurably ({_points(test.difference)} points)"
    null = f"{site.split_half_null_low:.2f} to {site.split_half_null_high:.2f}"
    same = (site.layer, site.position) == (site.original_layer, site.original_position)
    # Of all prompts, as the null is.
    moved = "below" if site.cosine_same_site_shared < site.split_half_null_low else "within or above"
    source = "the same source site" if same else f"source site ({site.layer}, {site.position})"
    yield (
        f"  {plain.compression} {what} (p = {test.p_value:.2g}), to {percent(plain.refusal)}; its direction has "
        f"cosine {site.cosine_same_site_shared:.2f} with the original's at the same site, {moved} the split-half null "
        f"({null}), norm ratio {site.norm_ratio:.2f}, {source}."
    )
    for row in rows[rows.patch != "plain"].itertuples():
        refusal, over = _test(tests, row, "plain"), _test(tests, row, "plain", "over_refusal")
        effect = "" if refusal.p_value < SIGNIFICANT else " (no measurable change)"
        yield (
            f"    {row.patch}: {_points(refusal.difference)} points of refusal, p = {refusal.p_value:.2g}{effect}; "
            f"over-refusal {_points(over.difference)} points, perplexity x {row.perplexity / plain.perplexity:.3f}, "
            f"utility {_points(row.utility - plain.utility)} points."
        )


def _test(tests: pandas.DataFrame, row: pandas.Series, against: str, rate: str = "refusal") -> pandas.Series:
    chosen = tests[
        (tests.compression == row.compression)
        & (tests.patch == row.patch)
        & (tests.against == against)
        & (tests.rate == rate)
    ]
    return chosen.iloc[0]


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"
