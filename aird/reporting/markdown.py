"""The summary and the directions as Markdown tables, for a README or a notebook."""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from aird.evaluation.judges.registry import TABULATED
from aird.settings.base import ORIGINAL


def summary_markdown(summary: pandas.DataFrame) -> str:
    """Return one row per cell: rates in percent with their intervals, perplexity, utility.

    Suites and models are columns where there are several.
    """
    several = _several(summary, "suite", "model")
    header = [
        *several,
        "compression",
        "patch",
        "refusal, % (95% interval)",
        *(f"ASR, {judge.title}, %" for judge in TABULATED),
        "degenerate, %",
        "over-refusal, % (95% interval)",
        "perplexity (95% interval)",
        "utility, %",
    ]
    rows = [
        [
            *(getattr(row, name) for name in several),
            row.compression,
            row.patch,
            _percent(row.refusal, row.refusal_low, row.refusal_high),
            *(_percent(getattr(row, f"asr_{judge.name}")) for judge in TABULATED),
            _percent(row.degenerate),
            _percent(row.over_refusal, row.over_refusal_low, row.over_refusal_high),
            f"{row.perplexity:.2f} ({row.perplexity_low:.2f} to {row.perplexity_high:.2f})",
            "" if pandas.isna(row.utility) else _percent(row.utility),
        ]
        for row in summary.itertuples()
    ]
    return _table(header, rows)


def directions_markdown(directions: pandas.DataFrame) -> str:
    """Return one row per checkpoint: its site, its cosine with the original's against the null, claim C1.

    The model is a column where there are several. What was not measured yet is empty.
    """
    several = _several(directions, "model")
    header = [
        *several,
        "compression",
        "source site (layer, position)",
        "chosen by",
        "harmful prompts kept",
        "cosine, same site (bootstrap)",
        "split-half null",
        "norm ratio",
        "refusal, harmful: plain, ablated, %",
        "refusal, harmless: plain, added, %",
    ]
    rows = []
    for _, row in directions.iterrows():
        # The original agrees with itself.
        cosine, null, ratio = ("1", "", "1") if row["compression"] == ORIGINAL else ("", "", "")
        if not pandas.isna(row.get("cosine_same_site")):
            low, high = row["cosine_same_site_bootstrap_low"], row["cosine_same_site_bootstrap_high"]
            cosine = f"{row['cosine_same_site']:.2f} ({low:.2f} to {high:.2f})"
            null = f"{row['split_half_null_low']:.2f} to {row['split_half_null_high']:.2f}"
            ratio = f"{row['norm_ratio']:.2f}"
        rows.append(
            [
                *(row[name] for name in several),
                row["compression"],
                f"({row['layer']}, {row['position']})",
                row["rule"],
                str(row["n_harmful_train"]),
                cosine,
                null,
                ratio,
                _pair(row, "refusal_harmful", "refusal_harmful_ablated"),
                _pair(row, "refusal_harmless", "refusal_harmless_added"),
            ]
        )
    return _table(header, rows)


def _several(frame: pandas.DataFrame, *names: str) -> list[str]:
    """Return those of the columns that tell rows apart."""
    return [name for name in names if name in frame and frame[name].nunique() > 1]


def _pair(row: pandas.Series, before: str, after: str) -> str:
    rates = row.get(before), row.get(after)
    return "" if pandas.isna(rates[0]) else ", ".join(_percent(rate) for rate in rates)


def _percent(value: float, low: float | None = None, high: float | None = None) -> str:
    interval = f" ({100 * low:.1f} to {100 * high:.1f})" if low is not None and high is not None else ""
    return f"{100 * value:.1f}{interval}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
