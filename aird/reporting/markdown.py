"""Tables as text: the summary and the directions as Markdown, which `make tables` prints, and any for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas

from aird.evaluation.judge import titles
from aird.reporting.names import engines_in_words
from aird.settings.base import ORIGINAL, PLAIN

Tell = Callable[[pandas.Series], object]


def summary_markdown(summary: pandas.DataFrame) -> str:
    """Return one row per cell: rates in percent with their intervals, perplexity, utility.

    Suites and models are columns where there are several, and so are engines and the forms in which patches were
    served. Where a compression had another engine than its original, a note below the table says what that means.
    """
    several = "engine" in summary and summary["engine"].nunique() > 1
    several_forms = summary.loc[summary["patch"] != PLAIN, "served_as"].nunique() > 1
    columns: dict[str, Tell] = {
        **({"served as": lambda row: row["served_as"]} if several_forms else {}),
        **({"engine": lambda row: "" if pandas.isna(row["engine"]) else row["engine"]} if several else {}),
        "refusal, % (95% interval)": lambda row: _percent(row, "refusal", interval=True),
        **{
            f"ASR, {title}, %": lambda row, rate=rate: _percent(row, rate)  # type: ignore[misc]
            for rate, title in titles(summary.dropna(axis="columns", how="all").columns).items()
        },
        "degenerate, %": lambda row: _percent(row, "degenerate"),
        **({"unfinished, %": lambda row: _percent(row, "unfinished")} if "unfinished" in summary else {}),
        "over-refusal, % (95% interval)": lambda row: _percent(row, "over_refusal", interval=True),
        "perplexity (95% interval)": lambda row: _perplexity(row),
        "utility, %": lambda row: _percent(row, "utility"),
    }
    table = _markdown(summary, ("suite", "model"), ("compression", "patch"), columns)
    return "\n\n".join([table, *(_mixed(summary) if several else ())])


def _mixed(summary: pandas.DataFrame) -> Iterator[str]:
    """Yield a line for each compression of a model that another engine served than its original."""
    engines = summary.drop_duplicates(["model", "compression"]).set_index(["model", "compression"])["engine"]
    for (model, compression), engine in engines.items():
        if said := engines_in_words(engine, engines.get((model, ORIGINAL))):
            yield f"{compression} of {model}: {said}"


def directions_markdown(directions: pandas.DataFrame) -> str:
    """Return one row per checkpoint: its site, its corrected cosine with the original's, claim C1.

    The model is a column where there are several. What was not measured yet is empty.
    """
    columns: dict[str, Tell] = {
        "source site (layer, position)": lambda row: f"({row['layer']}, {row['position']})",
        "chosen by": lambda row: row["rule"],
        "harmful prompts kept": lambda row: row["n_harmful_train"],
        "corrected cosine, same site (95% interval)": lambda row: _corrected(row),
        "norm ratio": lambda row: _compared(row, "{norm_ratio:.2f}", "1"),
        "refusal, harmful: plain, ablated, %": lambda row: _pair(row, "refusal_harmful", "refusal_harmful_ablated"),
        "refusal, harmless: plain, added, %": lambda row: _pair(row, "refusal_harmless", "refusal_harmless_added"),
    }
    return _markdown(directions, ("model",), ("compression",), columns)


def _markdown(
    frame: pandas.DataFrame, where_several: tuple[str, ...], names: tuple[str, ...], columns: Mapping[str, Tell]
) -> str:
    """Return columns of names and told ones; of those `where_several`, those that tell rows apart."""
    several = [name for name in where_several if name in frame and frame[name].nunique() > 1]
    told = {title: [tell(row) for _, row in frame.iterrows()] for title, tell in columns.items()}
    table = frame[[*several, *names]].assign(**told)
    # Numbers are text already, rounded as they should be.
    return str(table.to_markdown(index=False, disable_numparse=True))


def _compared(row: pandas.Series, form: str, of_original: str) -> str:
    """Return a comparison with the original in a form; the original agrees with itself."""
    if row["compression"] == ORIGINAL:
        return of_original
    return "" if pandas.isna(row.get("cosine_same_site")) else form.format_map(row)


def _corrected(row: pandas.Series) -> str:
    """Return the cosine that is corrected for noise; its bounds alone where it has no value."""
    name = "cosine_same_site_corrected"
    value = "none" if pandas.isna(row.get(name)) else f"{row[name]:.2f}"
    return _compared(row, f"{value} ({{{name}_low:.2f}} to {{{name}_high:.2f}})", "1")


def _pair(row: pandas.Series, before: str, after: str) -> str:
    return "" if pandas.isna(row.get(before)) else f"{_percent(row, before)}, {_percent(row, after)}"


def _perplexity(row: pandas.Series) -> str:
    """Return the perplexity with its interval; nothing where an engine measures none."""
    if pandas.isna(row["perplexity"]):
        return ""
    return f"{row['perplexity']:.2f} ({row['perplexity_low']:.2f} to {row['perplexity_high']:.2f})"


def _percent(row: pandas.Series, name: str, interval: bool = False) -> str:
    bounds = f" ({100 * row[f'{name}_low']:.1f} to {100 * row[f'{name}_high']:.1f})" if interval else ""
    return "" if pandas.isna(row[name]) else f"{100 * row[name]:.1f}{bounds}"


def describe(frame: pandas.DataFrame, columns: Sequence[str]) -> str:
    """Return some columns of a table as aligned text for a terminal."""
    shown = frame[list(columns)]
    return str(shown.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep="-"))
