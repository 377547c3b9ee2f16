"""The finding in words: a few sentences per compression, from the tables."""

from __future__ import annotations

from collections.abc import Iterator

import pandas

SIGNIFICANT = 0.05  # two-sided level below which a difference is called one


def findings(summary: pandas.DataFrame, paired: pandas.DataFrame, directions: pandas.DataFrame) -> Iterator[str]:
    """Yield a sentence or two per model, compression and patch.

    Args:
        summary, paired, directions: the tables of the same names.
    """
    for suite, model in summary[["suite", "model"]].drop_duplicates().itertuples(index=False, name=None):
        rows = summary[(summary.suite == suite) & (summary.model == model)]
        tests = paired[(paired.suite == suite) & (paired.model == model)]
        original = rows[rows.compression == "original"].iloc[0]
        yield (
            f"{model}, suite {suite}: the original refuses {percent(original.refusal)} of {original.n} harmful prompts "
            f"and {percent(original.over_refusal)} of the harmless ones."
        )
        for compression in rows.compression.drop_duplicates():
            if compression != "original":
                sites = directions[(directions.model == model) & (directions.compression == compression)]
                yield from _compression(rows[rows.compression == compression], tests, sites.iloc[0])


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
    moved = "below" if site.cosine_same_site < site.split_half_null_low else "within or above"
    source = "the same source site" if same else f"source site ({site.layer}, {site.position})"
    yield (
        f"  {plain.compression} {what} (p = {test.p_value:.2g}), to {percent(plain.refusal)}; its direction has cosine "
        f"{site.cosine_same_site:.2f} with the original's at the same site, {moved} the split-half null ({null}), norm "
        f"ratio {site.norm_ratio:.2f}, {source}."
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
