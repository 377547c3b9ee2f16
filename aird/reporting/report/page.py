"""The page: from tables, figures and records to one HTML file, by the template beside this module."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from aird.inference.refusals import REFUSAL_JUDGE
from aird.reporting.claims.statement import read_statements
from aird.reporting.figures.drawing import read_table
from aird.reporting.figures.frontier import COSTS, frontier_pairs, frontier_panel
from aird.reporting.figures.style import Patches, with_perplexity_ratio
from aird.reporting.report import provenance
from aird.reporting.report.captions import Captions
from aird.reporting.report.claim_list import MARKS, claims
from aird.reporting.report.data_tables import html_table, short_number
from aird.reporting.report.pictures import figure_svg, inline_svg
from aird.reporting.report.sensitivity import sensitivity_rows
from aird.reporting.sentences.attacks import attack_sentences
from aird.reporting.sentences.details import details
from aird.reporting.sentences.headlines import headlines
from aird.reporting.table import INTERVAL
from aird.reporting.timings import by_stage, duration
from aird.settings.base import ORIGINAL, PLAIN
from aird.support.files import atomic_file

FOLDER = Path(__file__).parent
# Brackets with an interval or a p-value: they are read second.
UNCERTAINTY = re.compile(r"\([^()]*(?:%|\bp |\d to )[^()]*\)")


@dataclass(frozen=True)
class Sources:
    """What the report is made from.

    Attributes:
        tables: the CSV tables, in the order of the page.
        timings: the CSV table of that name.
        figures: the SVG figures, in the order of the page.
        captions: the texts beside them.
        manifests: of the checkpoints.
        records: of the served checkpoints; they name versions.
        arithmetic: the record of the type that the run computed in.
        locks: of the environments.
        configuration: as checked, defaults included.
        command: what makes all this again.
    """

    tables: Sequence[Path]
    timings: Path
    figures: Sequence[Path]
    captions: Sequence[Path]
    manifests: Sequence[Path]
    records: Sequence[Path]
    arithmetic: Path
    locks: Sequence[Path]
    configuration: Mapping[str, Any]
    command: str


def write_report(output: Path, sources: Sources) -> None:
    """Write the report as one HTML file that asks nothing of a network.

    Args:
        output: the file.
        sources: what it shows.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "short": short_number, "percent": lambda rate: f"{100 * rate:.1f}"}
    page = environment.get_template("page.html.j2").render(_content(sources))
    with atomic_file(output) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _content(sources: Sources) -> dict[str, object]:
    configuration = sources.configuration
    tables = {path.stem: read_table(path) for path in sources.tables}
    captions = Captions(sources.captions)
    summary = tables["summary"]
    judged = read_statements(next(path for path in sources.tables if path.stem == "claims"))
    timings = pandas.read_csv(sources.timings)
    stages = by_stage(timings)
    return {
        "style": Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        "script": Markup((FOLDER / "script.js").read_text(encoding="utf-8")),
        "models": list(configuration["models"]),
        "claims": claims(judged, list(dict.fromkeys(summary["suite"]))),
        "marks": MARKS,
        "headlines": [
            Markup(UNCERTAINTY.sub(r'<small class="uncertainty">\g<0></small>', str(escape(sentence))))
            for sentence in headlines(summary, tables["paired"], judged, configuration)
        ],
        "details": list(details(summary, tables["paired"], tables["directions"])),
        "attack_sentences": list(attack_sentences(summary, tables["attacks"], tables["resistance"], configuration)),
        "attacks": _attacks(tables["attacks"]),
        "suites": _suites(summary, tables["paired"], configuration["patches"]),
        "about": Markup(captions("workflow")),
        "frontier_caption": Markup(captions("figure", figure="frontier")),
        "direction_rows": tables["directions"].to_dict("records"),
        # Only where a configuration names patches to examine.
        "restored_rows": tables["restored_directions"].to_dict("records") if "restored_directions" in tables else [],
        "figures": _figures(sources.figures, captions),
        "tables": [(html_table(name, frame), Markup(captions.table(name))) for name, frame in tables.items()],
        "stages": stages.to_dict("records"),
        "total_seconds": float(stages["seconds"].sum()),
        "jobs": html_table("timings", timings),
        "provenance": {
            "Models and data": provenance.sources(configuration),
            "Checkpoints, SHA-256 of the weights": provenance.checkpoints(sources.manifests),
            "Settings": provenance.settings_rows(configuration),
            "Versions": provenance.versions(sources.records),
            "Locks, SHA-256": provenance.locks(sources.locks),
            "Arithmetic on a processor": provenance.arithmetic(sources.arithmetic),
            "Machine that wrote this page": provenance.machine(),
        },
        "command": sources.command,
    }


def _attacks(attacks: pandas.DataFrame) -> list[dict[str, object]]:
    """Return a table per suite, model and compression: attacks down; the original, then the patches, across."""

    def rate(row: pandas.Series) -> dict[str, float]:
        return {end: row[f"asr_{REFUSAL_JUDGE}{column}"] for column, end in INTERVAL.items()}

    tables: list[dict[str, object]] = []
    several = len(attacks[["suite", "model"]].drop_duplicates()) > 1
    for (suite, model, compression), rows in attacks.groupby(["suite", "model", "compression"], sort=False):
        if compression == ORIGINAL:
            continue
        whole = attacks[(attacks["suite"] == suite) & (attacks["model"] == model)]
        original = whole[(whole["compression"] == ORIGINAL) & (whole["patch"] == PLAIN)]
        cells = {ORIGINAL: original} | dict(list(rows.groupby("patch", sort=False)))
        indexed = [own.set_index("attack") for own in cells.values()]
        lines = [
            {"attack": row.attack, "n": row.n, "rates": [rate(own.loc[row.attack]) for own in indexed]}
            for row in original.itertuples()
        ]
        title = f"{compression}, {model}, suite {suite}" if several else compression
        tables.append({"title": title, "cells": list(cells), "rows": lines})
    return tables


def _suites(summary: pandas.DataFrame, paired: pandas.DataFrame, patches: Patches) -> list[dict[str, object]]:
    suites: list[dict[str, object]] = []
    for suite, of_suite in summary.groupby("suite", sort=False):
        several = of_suite["model"].nunique() > 1
        panels = []
        for index, (model, compression) in enumerate(frontier_pairs(of_suite)):
            pictures = []
            for cost, label in COSTS.items():
                panel = frontier_panel(of_suite, (model, compression), cost, patches)
                prefix = f"{suite}-{index}-{cost}".replace("_", "-")
                description = f"Refusal of {compression} against {label}, one point per patch"
                pictures.append(Markup(figure_svg(panel, prefix, description)))
            panels.append({"title": f"{model}, {compression}" if several else compression, "pictures": pictures})
        groups = [
            {"model": model, "compression": compression, "rows": rows.to_dict("records")}
            for (model, compression), rows in with_perplexity_ratio(of_suite).groupby(
                ["model", "compression"], sort=False
            )
        ]
        told_apart = [
            row | {"model": model}
            for model, rows in of_suite.groupby("model", sort=False)
            for row in sensitivity_rows(rows, paired[(paired["suite"] == suite) & (paired["model"] == model)])
        ]
        suites.append({"name": suite, "panels": panels, "groups": groups, "told_apart": told_apart})
    return suites


def _figures(paths: Sequence[Path], captions: Captions) -> dict[str, list[dict[str, object]]]:
    """Return the figures by section of the page; the panels of the frontier stand on their own."""
    figures: dict[str, list[dict[str, object]]] = {"finding": [], "cost": [], "directions": []}
    for path in paths:
        kind, _, suite = path.stem.partition(".")
        if kind == "frontier":
            continue
        title = f"{kind.capitalize()}, suite {suite}" if suite else kind.capitalize()
        picture = Markup(inline_svg(path.read_text(encoding="utf-8"), path.stem.replace(".", "-"), title))
        caption = Markup(captions("figure", figure=path.stem))
        section = "finding" if kind == "refusal" else "cost" if suite else "directions"
        figures[section].append({"title": title, "picture": picture, "caption": caption})
    return figures
