"""How well each checkpoint tells harmful from harmless prompts, as rows of the page, beside its rates."""

from __future__ import annotations

from collections.abc import Iterator

import pandas

from aird.reporting.sentences.numbers import paired_test
from aird.reporting.table import INTERVAL
from aird.settings.base import ORIGINAL


def sensitivity_rows(rows: pandas.DataFrame, paired: pandas.DataFrame) -> Iterator[dict[str, object]]:
    """Yield a row per checkpoint of one suite and model; cells of what is not measured, or not compared, are empty.

    Args:
        rows: of the summary.
        paired: the paired tests of the same suite and model.
    """
    for _, row in rows.iterrows():
        cells: dict[str, object] = {name: row[name] for name in ("compression", "patch", "refusal", "over_refusal")}
        cells |= {name: _estimate(row, name) for name in ("sensitivity", "auc")}
        cells |= dict.fromkeys(("sensitivity_restored", "auc_restored", "harmful", "harmless"), "")
        if row.compression != ORIGINAL:
            tests = {
                kind: paired_test(paired, row, ORIGINAL, rate)
                for kind, rate in (("harmful", "refusal"), ("harmless", "over_refusal"))
            }
            restored = {
                name: _estimate(tests["harmful"], name, 100) for name in ("sensitivity_restored", "auc_restored")
            }
            cells |= restored
            cells |= {kind: f"{test.lost}, {test.gained}" for kind, test in tests.items()}
            cells |= {f"{kind}_agreement": _estimate(test, "agreement", 100) for kind, test in tests.items()}
        yield cells


def _estimate(row: pandas.Series, name: str, scale: int = 1) -> str:
    """Return a value with its interval: with two digits, or in whole per cent (100 times it)."""
    if pandas.isna(row[name]):
        return ""
    value, low, high = (f"{scale * row[f'{name}{end}']:.{2 if scale == 1 else 0}f}" for end in INTERVAL)
    return f"{value} ({low} to {high})"
