"""Every checkpoint and every site in words."""

from __future__ import annotations

from collections.abc import Iterator

import pandas

from aird.evaluation.regression import many_more_degenerate
from aird.reporting.sentences.numbers import compressions_of, paired_test, parts_of, percent, points
from aird.reporting.sentences.told_apart import told_apart
from aird.settings.base import ORIGINAL, PLAIN
from aird.support.statistics import SIGNIFICANT


def details(summary: pandas.DataFrame, paired: pandas.DataFrame, directions: pandas.DataFrame) -> Iterator[str]:
    """Yield, per suite and model, sentences about every checkpoint and every site; about a patch with an indent.

    Args:
        summary, paired, directions: the tables of the same names.
    """
    for about, rows, tests in parts_of(summary, paired):
        of_model = directions[directions.model == rows.model.iloc[0]]
        yield about
        original = rows[rows.compression == ORIGINAL].iloc[0]
        for of_compression in compressions_of(rows):
            sites = of_model[of_model.compression == of_compression.compression.iloc[0]]
            # What changes no weight has no direction of its own.
            yield from _compression(of_compression, original, tests, None if sites.empty else sites.iloc[0])
        yield from _second_opinions(of_model)


def _site(site: pandas.Series) -> str:
    same = (site.layer, site.position) == (site.original_layer, site.original_position)
    value, low, high = (site[f"cosine_same_site_corrected{end}"] for end in ("", "_low", "_high"))
    cosine = "an undefined cosine" if pandas.isna(value) else f"cosine {value:.2f} ({low:.2f} to {high:.2f})"
    source = "the same source site" if same else f"source site ({site.layer}, {site.position})"
    return (
        f"its direction has {cosine} with the original's at the same site, corrected for noise, norm ratio "
        f"{site.norm_ratio:.2f}, {source}"
    )


def _compression(
    rows: pandas.DataFrame, original: pandas.Series, tests: pandas.DataFrame, site: pandas.Series | None
) -> Iterator[str]:
    plain = rows[rows.patch == PLAIN].iloc[0]
    test = paired_test(tests, plain, "original")
    what = f"changed refusal by {points(test.difference)} points"
    if test.p_value >= SIGNIFICANT:
        what = f"did not change refusal measurably ({points(test.difference)} points)"
    over, also = paired_test(tests, plain, "original", "over_refusal"), ""
    if over.p_value < SIGNIFICANT:
        also = (
            f", and changed over-refusal by {points(over.difference)} points (p = {over.p_value:.2g}), to "
            f"{percent(plain.over_refusal)}"
        )
    if many_more_degenerate(original.degenerate, plain.degenerate):
        also += f", with {percent(plain.degenerate)} of the answers degenerate text"
    direction = "no weight changed, so its direction is the original's" if site is None else _site(site)
    yield f"  {plain.compression} {what} (p = {test.p_value:.2g}), to {percent(plain.refusal)}{also}; {direction}."
    if apart := told_apart(plain, tests, plain.compression):
        yield f"  {apart}"
    for _, row in rows[rows.patch != PLAIN].iterrows():
        refusal, over = paired_test(tests, row, "plain"), paired_test(tests, row, "plain", "over_refusal")
        effect = "" if refusal.p_value < SIGNIFICANT else " (no measurable change)"
        costs = [f"over-refusal {points(over.difference)} points"]
        if many_more_degenerate(original.degenerate, row.degenerate):
            costs.append(f"{percent(row.degenerate)} of the answers degenerate text")
        # A suite may measure neither.
        if not pandas.isna(row.perplexity):
            costs.append(f"perplexity x {row.perplexity / plain.perplexity:.3f}")
        if not pandas.isna(row.utility):
            costs.append(f"utility {points(row.utility - plain.utility)} points")
        yield (
            f"    {row.patch}: {points(refusal.difference)} points of refusal, p = {refusal.p_value:.2g}{effect}; "
            f"{', '.join(costs)}."
        )
        if apart := told_apart(row, tests, row.patch):
            yield f"    {apart}"


def _second_opinions(directions: pandas.DataFrame) -> Iterator[str]:
    """Yield how firm the choice of each site is, and COSMIC's, where it was asked, if that is another."""
    for row in directions.itertuples():
        other = ""
        if not pandas.isna(row.cosmic_layer):
            site = f"({int(row.cosmic_layer)}, {int(row.cosmic_position)})"
            other = f"; COSMIC {'agrees' if row.cosmic_agrees else f'chooses {site}'}"
        # COSMIC's choice is not resampled.
        stable = ""
        if not pandas.isna(row.resampled_same_site):
            stable = f"; resampled prompts choose it in {percent(row.resampled_same_site)} of cases"
        yield f"  {row.compression}: site ({row.layer}, {row.position}), by {row.rule}{stable}{other}."
