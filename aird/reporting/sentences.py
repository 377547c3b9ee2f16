"""The results in words, from the tables: a sentence per compression, a sentence per verdict, and the details.

The report opens on them, and print_summary.py prints them at the end of a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from aird.evaluation.regression import BROKEN, many_more_degenerate
from aird.reporting.names import (
    compression_in_words,
    control_in_words,
    engines_in_words,
    is_control,
    is_repair,
    matched_controls,
    patch_in_words,
)
from aird.reporting.verdicts import (
    ALL,
    ATTACK_MARGIN,
    DOES_NOT_HOLD,
    HOLDS,
    LOWERS_REFUSAL,
    RAISES,
    RAISES_REFUSAL,
    SIGNIFICANT,
    SMALLEST_EFFECT,
    UNDECIDED,
)
from aird.settings.attacks import NO_ATTACK
from aird.settings.base import ORIGINAL, PLAIN
from aird.support.statistics import holm, mean_change

Configuration = Mapping[str, Any]
NOTHING_ADDED = " So the direction adds nothing to this repair."


# The first sentences


def headlines(
    summary: pandas.DataFrame, paired: pandas.DataFrame, claims: pandas.DataFrame, configuration: Configuration
) -> Iterator[str]:
    """Yield, per suite and model, a sentence about the original and one per compression.

    A compression's sentence tells what it took from refusal, what its repair brings back, and what that costs. The
    repair is the calibrated patch; where there is none, the patch that refuses most and is no control. Where its
    matched controls restore as much, or may, a further sentence says so, and one where many more answers are degenerate
    text than the original's, or another engine served it than the original.

    Args:
        summary, paired: the tables of the same names.
        claims: as of `read_claims`.
        configuration: names in `compressions` and `patches` to their settings; what is missing there goes by its name.
    """
    parts = list(_parts(summary, paired))
    for about, rows, tests in parts:
        original = rows[rows.compression == ORIGINAL].iloc[0]
        yield _original(original, tests, f"{about}: " if len(parts) > 1 else "")
        for of_compression in _compressed(rows):
            sentence = _headline(of_compression, original, tests, claims, configuration)
            broken = _broken(of_compression, original, configuration["patches"])
            controls = _controls(of_compression, tests, claims, configuration["patches"])
            yield sentence + broken + controls + _engines(of_compression.iloc[0], original)


def _parts(
    summary: pandas.DataFrame, paired: pandas.DataFrame
) -> Iterator[tuple[str, pandas.DataFrame, pandas.DataFrame]]:
    """Yield, per suite and model, what it is called, and its rows of both tables."""
    for (suite, model), rows in summary.groupby(["suite", "model"], sort=False):
        yield f"{model}, suite {suite}", rows, paired[(paired.suite == suite) & (paired.model == model)]


def _compressed(rows: pandas.DataFrame) -> Iterator[pandas.DataFrame]:
    """Yield the rows of each compression of a model."""
    for compression, of_compression in rows.groupby("compression", sort=False):
        if compression != ORIGINAL:
            yield of_compression


def _original(original: pandas.Series, tests: pandas.DataFrame, about: str) -> str:
    harmless = tests[tests.rate == "over_refusal"].n
    count = f" {harmless.iloc[0]}" if len(harmless) else ""
    return (
        f"{about}The original refuses {_rate(original)} of {original.n} harmful prompts and "
        f"{_rate(original, 'over_refusal')} of{count} harmless ones. Brackets hold 95% intervals, and p-values of "
        "McNemar's test over the same prompts."
    )


def _headline(
    rows: pandas.DataFrame,
    original: pandas.Series,
    tests: pandas.DataFrame,
    claims: pandas.DataFrame,
    configuration: Configuration,
) -> str:
    plain = rows[rows.patch == PLAIN].iloc[0]
    test = _test(tests, plain, "original")
    name = compression_in_words(plain.compression, configuration["compressions"].get(plain.compression))
    before, after = whole_percent(original.refusal), _rate(plain, more=_p_value(test.p_value))
    lost = test.p_value < SIGNIFICANT and test.difference < 0
    if test.p_value < SIGNIFICANT:
        verb = "took" if lost else "raised"
        sentence = f"{name[0].upper()}{name[1:]} {verb} refusal from {before} to {after}"
    elif max(map(abs, _interval(test))) < SMALLEST_EFFECT:
        sentence = (
            f"With {name} the model refuses {_rate(plain)}, as the original does ({before}; {_p_value(test.p_value)})"
        )
    else:
        sentence = (
            f"With {name} the model refuses {_rate(plain)}; {test.n} prompts do not show whether that differs from the "
            f"original's {before} ({_p_value(test.p_value)})"
        )
    over = _test(tests, plain, "original", "over_refusal")
    if over.p_value < SIGNIFICANT:
        few, many = whole_percent(original.over_refusal), _rate(plain, "over_refusal", more=_p_value(over.p_value))
        if test.p_value < SIGNIFICANT:
            sentence += f", and {'raised' if over.difference > 0 else 'lowered'} that of harmless prompts"
            sentence += f" from {few} to {many}"
        else:
            sentence += f"; of harmless prompts it refuses {many} instead of the original's {few}"
    patch = _repair(rows, configuration["patches"])
    if patch is None:
        return f"{sentence}."
    answers_lost = over.p_value < SIGNIFICANT and over.difference > 0
    judged = _judged(claims, patch).verdict.to_dict()
    return f"{sentence}; {_repaired(patch, lost, answers_lost, tests, judged, original, configuration)}."


def _repair(rows: pandas.DataFrame, patches: Mapping[str, Any]) -> pandas.Series | None:
    """Return the row of the patch that a sentence tells of; None if there is no patch but controls."""
    candidates = rows[(rows.patch != PLAIN) & ~rows.patch.map(lambda name: is_control(patches.get(name)))]
    calibrated = candidates[candidates.patch.map(lambda name: is_repair(patches.get(name)))]
    if len(calibrated):
        return calibrated.iloc[0]
    return candidates.loc[candidates.refusal.idxmax()] if len(candidates) else None


def _repaired(
    patch: pandas.Series,
    lost: bool,
    answers_lost: bool,
    tests: pandas.DataFrame,
    judged: Mapping[str, str],
    original: pandas.Series,
    configuration: Configuration,
) -> str:
    """Return what a patch makes of a checkpoint that lost refusal of harmful or answers to harmless prompts, or not.

    `judged` has claim C4's verdicts on the patch by their statements: a gain that is not significant is none only
    where the verdict says so.
    """
    gain, left = _test(tests, patch, "plain"), _test(tests, patch, "original")
    name = patch_in_words(patch.patch, configuration["patches"].get(patch.patch))
    to = _rate(patch, more=_p_value(gain.p_value))
    less = left.p_value < SIGNIFICANT and left.difference < 0
    if not lost:
        sentence = f"with {name} it refuses {to}"
    elif gain.difference <= 0 or (gain.p_value >= SIGNIFICANT and judged.get(RAISES_REFUSAL) == DOES_NOT_HOLD):
        sentence = f"{name} does not bring it back: {to}"
    elif gain.p_value >= SIGNIFICANT:
        sentence = f"{gain.n} prompts do not show whether {name} brings it back: {to}"
    elif less:
        sentence = f"{name} brings a part of it back: {to}"
    elif _interval(left)[0] > -SMALLEST_EFFECT:
        sentence = f"{name} brings it back to {to}"
    else:
        # Too few prompts to tell two rates apart do not make them alike.
        sentence = f"{name} brings at least a part of it back, and {left.n} prompts do not show whether all: {to}"
    over = _test(tests, patch, "original", "over_refusal")
    cost, before = whole_percent(patch.over_refusal), whole_percent(original.over_refusal)
    if answers_lost:
        answers = _test(tests, patch, "plain", "over_refusal")
        come = "answers come back"
        if answers.difference >= 0 or (answers.p_value >= SIGNIFICANT and judged.get(LOWERS_REFUSAL) == DOES_NOT_HOLD):
            come = "answers do not come back"
        elif answers.p_value >= SIGNIFICANT:
            come = f"{answers.n} harmless prompts do not show whether answers come back"
        return (
            f"{sentence}, and {come}: of harmless prompts "
            f"{_rate(patch, 'over_refusal', more=_p_value(answers.p_value))} are refused, by the original {before} "
            f"({_p_value(over.p_value)})"
        )
    if over.lost == over.gained == 0:
        return f"{sentence}, and harmless prompts are refused {cost} of the time, as by the original"
    return (
        f"{sentence}, and harmless prompts are refused {cost} of the time instead of the original's {before} "
        f"({_p_value(over.p_value)})"
    )


def _broken(rows: pandas.DataFrame, original: pandas.Series, patches: Mapping[str, Any]) -> str:
    """Return a further sentence each where a compression, or its repair, has many more degenerate answers."""
    said, patch = "", _repair(rows, patches)
    for row in (rows[rows.patch == PLAIN].iloc[0], *([] if patch is None else [patch])):
        if many_more_degenerate(original.degenerate, row.degenerate):
            repaired = "" if row.patch == PLAIN else f" with {patch_in_words(row.patch, patches.get(row.patch))}"
            said += (
                f" {whole_percent(row.degenerate)} of its answers to harmful prompts{repaired} are degenerate text, "
                f"and {whole_percent(original.degenerate)} of the original's: it is {BROKEN}."
            )
    return said


def _controls(
    rows: pandas.DataFrame, tests: pandas.DataFrame, claims: pandas.DataFrame, patches: Mapping[str, Any]
) -> str:
    """Return sentences about the controls that restore as much as the repair, or may; empty where there is nothing.

    A repair that restores nothing needs no control.
    """
    plain, patch = rows[rows.patch == PLAIN].iloc[0], _repair(rows, patches)
    if patch is None:
        return ""
    lost, gain = _test(tests, plain, "original"), _test(tests, patch, "plain")
    if max(lost.p_value, gain.p_value) >= SIGNIFICANT or lost.difference >= 0 or gain.difference <= 0:
        return ""
    judged = _judged(claims, patch)
    named = {name: f"{RAISES} more than {name}" for name in matched_controls(patches).get(patch.patch, ())}
    controls = rows[rows.patch.isin([name for name, statement in named.items() if statement in judged.index])]
    verdicts = controls.patch.map(lambda name: judged.verdict[named[name]])
    kinds = controls.patch.map(lambda name: control_in_words(patches[name]))
    random = verdicts[controls.patch.map(lambda name: patches[name]["direction"] == "random")]
    refuted = (random == DOES_NOT_HOLD).any()
    # Where random directions differ in what they restore, one alone says nothing of the direction.
    differ = refuted and random.nunique() > 1
    said = ""
    for verdict in (DOES_NOT_HOLD, UNDECIDED, *([HOLDS] if differ else [])):
        for alike, alike_rows in controls[verdicts == verdict].groupby(kinds, sort=False):
            listed = "; ".join(
                f"{row.patch} refuses {_rate(row)}, and {whole_percent(row.over_refusal)} of harmless prompts"
                for _, row in alike_rows.iterrows()
            )
            if verdict == UNDECIDED:
                said += f" Whether {alike} restores as much is undecided: {listed}."
                continue
            better = judged.p_adjusted[[named[name] for name in alike_rows.patch]].astype(float)
            amount = "more" if (better < SIGNIFICANT).all() else "about as much"
            if verdict == HOLDS:
                amount = "less"
            said += f" {alike[0].upper()}{alike[1:]} restores {amount}: {listed}."
        if said and not differ:
            break
    # A free column may have become the direction itself, so that alone says nothing of it.
    return said + (NOTHING_ADDED if refuted and not differ else "")


def _judged(claims: pandas.DataFrame, patch: pandas.Series) -> pandas.DataFrame:
    """Return claim C4's rows about one patched checkpoint by their statements."""
    own = claims[["suite", "model", "compression", "patch"]].eq(patch[["suite", "model", "compression", "patch"]])
    return claims[own.all(axis=1) & (claims.claim == "C4")].set_index("statement")


def _engines(compressed: pandas.Series, original: pandas.Series) -> str:
    """Return a further sentence where a compression and its original were served by different engines."""
    said = engines_in_words(compressed.get("engine"), original.get("engine"))
    return f" {said}" if said else ""


def _rate(row: pandas.Series, name: str = "refusal", more: str = "") -> str:
    """Return a rate with its interval, and what else belongs into the brackets."""
    low, high = (f"{100 * row[f'{name}_{bound}']:.0f}" for bound in ("low", "high"))
    return f"{whole_percent(row[name])} ({low} to {high}%{f', {more}' if more else ''})"


def _p_value(value: float) -> str:
    text = "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
    return text if value < SIGNIFICANT else f"not significant, {text}"


def whole_percent(rate: float) -> str:
    """Return a rate in whole per cent, halves rounded up, but never 0% or 100% of what is not."""
    text = f"{math.floor(100 * rate + 0.5):d}%"
    return text if text not in ("0%", "100%") or rate in (0, 1) else percent(rate)


def percent(rate: float) -> str:
    """Return a rate as per cent with one decimal."""
    return f"{100 * rate:.1f}%"


# Attacks


def attack_sentences(
    summary: pandas.DataFrame, attacks: pandas.DataFrame, resistance: pandas.DataFrame, configuration: Configuration
) -> Iterator[str]:
    """Yield, per suite with attacks and model, a sentence about the original and one per compression.

    Args:
        summary, attacks, resistance: the tables of the same names.
        configuration: as of `headlines`.
    """
    groups = list(attacks.groupby(["suite", "model"], sort=False))
    for (suite, model), rows in groups:
        of_summary = summary[(summary.suite == suite) & (summary.model == model)]
        tests = resistance[(resistance.suite == suite) & (resistance.model == model)]
        about = f"{model}, suite {suite}: " if len(groups) > 1 else ""
        original = rows[(rows.compression == ORIGINAL) & (rows.patch == PLAIN)]
        tried = original[original.attack != NO_ATTACK]
        alone = whole_percent(original[original.attack == NO_ATTACK].asr_arditi.iloc[0])
        compared = tests[(tests.against == ORIGINAL) & (tests.attack == ALL)]
        told = "Without an attack the original gives in to"
        if len(compared):
            share, count = whole_percent(compared.reference.iloc[0]), compared.n.iloc[0]
            told = (
                f"Under {len(tried)} attacks the original gives in to {share} of the attempts on a prompt, as a mean "
                f"over {count} prompts, and without an attack to"
            )
        yield f"{about}{told} {alone} of the prompts, by Arditi's phrases. Brackets hold 95% intervals over prompts."
        for of_compression in _compressed(of_summary):
            compression = of_compression.compression.iloc[0]
            name = compression_in_words(compression, configuration["compressions"].get(compression))
            plain = _gives_in(tests, PLAIN, compression)
            sentence = f"{name[0].upper()}{name[1:]} gives in to {plain}"
            patch = _repair(of_compression, configuration["patches"])
            if patch is not None:
                repair = patch_in_words(patch.patch, configuration["patches"].get(patch.patch))
                given = _gives_in(tests, patch.patch, compression)
                verdict = _overall(tests, patch.patch, compression).verdict
                sentence += f". With {repair} it gives in to {given}: {RESISTANCE[verdict]}"
                # An attack may find it weaker whatever is shown over all of them.
                if weak := _weak_to(tests, patch.patch, compression):
                    sentence += f". Under {', '.join(weak)} it gives in more often than the original"
            yield f"{sentence}."


RESISTANCE = {
    HOLDS: f"it resists at least as well as the original, to within {100 * ATTACK_MARGIN:.0f} points",
    DOES_NOT_HOLD: "it resists less than the original",
    UNDECIDED: (
        f"whether it resists at least as well as the original, to within {100 * ATTACK_MARGIN:.0f} points, is undecided"
    ),
}


def _gives_in(tests: pandas.DataFrame, patch: str, compression: str) -> str:
    """Return the share of attacks to which a checkpoint gives in, and its difference, both means over prompts."""
    test = _overall(tests, patch, compression)
    difference, low, high = map(_points, (test.difference, test.low, test.high))
    return f"{whole_percent(test.rate)} ({difference} points against the original, {low} to {high} points)"


def _overall(tests: pandas.DataFrame, patch: str, compression: str) -> pandas.Series:
    """Return the comparison with the original over all attacks."""
    own = _against_original(tests, patch, compression)
    return own[own.attack == ALL].iloc[0]


def _weak_to(tests: pandas.DataFrame, patch: str, compression: str) -> list[str]:
    """Return the attacks to which a checkpoint gives in more often than the original, by McNemar and Holm."""
    own = _against_original(tests, patch, compression)
    own = own[own.attack != ALL]
    adjusted = holm(own.p_value.tolist())
    return [
        row.attack
        for row, p_value in zip(own.itertuples(), adjusted, strict=True)
        if p_value < SIGNIFICANT and row.difference > 0
    ]


def _against_original(tests: pandas.DataFrame, patch: str, compression: str) -> pandas.DataFrame:
    chosen = (tests.patch == patch) & (tests.compression == compression) & (tests.against == ORIGINAL)
    return tests[chosen]


# The verdicts


def read_claims(path: Path) -> pandas.DataFrame:
    """Read the table of the claims: empty text is no suite and no patch, not an unknown one."""
    return pandas.read_csv(path, keep_default_na=False, dtype=str)


@dataclass(frozen=True)
class Overall:
    """A verdict over all compressions of a model, what it needs, and those on each of them: (compression, verdict)."""

    claim: str
    patch: str
    statement: str
    verdict: str
    needed: str
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
            overall.claim, overall.patch, overall.statement, overall.verdict, str(overall.needed or ""), pairs
        )


def verdict_sentences(claims: pandas.DataFrame) -> Iterator[str]:
    """Yield a sentence per model, suite and claim: its verdict, and what an undecided one needs.

    Args:
        claims: all rows of the table of that name; no patch and no suite are empty text.
    """
    groups = list(claims.groupby(["model", "suite"], sort=False))
    several = len({model for (model, _), _ in groups}) > 1 or len({suite for (_, suite), _ in groups} - {""}) > 1
    for (model, suite), rows in groups:
        about = f"{', '.join(filter(None, (model, suite)))}: " if several else ""
        for overall in overall_verdicts(rows):
            listed = ", ".join(f"{compression}: {verdict}" for compression, verdict in overall.each)
            patch = f", {overall.patch}" if overall.patch else ""
            verdict = f"{overall.verdict.upper()} ({listed})."
            yield f"{about}{overall.claim}{patch}, {overall.statement}: {verdict} {overall.needed}".strip()


# The details


def details(summary: pandas.DataFrame, paired: pandas.DataFrame, directions: pandas.DataFrame) -> Iterator[str]:
    """Yield, per suite and model, sentences about every checkpoint and every site; about a patch with an indent.

    Args:
        summary, paired, directions: the tables of the same names.
    """
    for about, rows, tests in _parts(summary, paired):
        of_model = directions[directions.model == rows.model.iloc[0]]
        yield about
        original = rows[rows.compression == ORIGINAL].iloc[0]
        for of_compression in _compressed(rows):
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
    test = _test(tests, plain, "original")
    what = f"changed refusal by {_points(test.difference)} points"
    if test.p_value >= SIGNIFICANT:
        what = f"did not change refusal measurably ({_points(test.difference)} points)"
    over, also = _test(tests, plain, "original", "over_refusal"), ""
    if over.p_value < SIGNIFICANT:
        also = (
            f", and changed over-refusal by {_points(over.difference)} points (p = {over.p_value:.2g}), to "
            f"{percent(plain.over_refusal)}"
        )
    if many_more_degenerate(original.degenerate, plain.degenerate):
        also += f", with {percent(plain.degenerate)} of the answers degenerate text"
    direction = "no weight changed, so its direction is the original's" if site is None else _site(site)
    yield f"  {plain.compression} {what} (p = {test.p_value:.2g}), to {percent(plain.refusal)}{also}; {direction}."
    for row in rows[rows.patch != PLAIN].itertuples():
        refusal, over = _test(tests, row, "plain"), _test(tests, row, "plain", "over_refusal")
        effect = "" if refusal.p_value < SIGNIFICANT else " (no measurable change)"
        costs = [f"over-refusal {_points(over.difference)} points"]
        if many_more_degenerate(original.degenerate, row.degenerate):
            costs.append(f"{percent(row.degenerate)} of the answers degenerate text")
        # A suite may measure neither.
        if not pandas.isna(row.perplexity):
            costs.append(f"perplexity x {row.perplexity / plain.perplexity:.3f}")
        if not pandas.isna(row.utility):
            costs.append(f"utility {_points(row.utility - plain.utility)} points")
        yield (
            f"    {row.patch}: {_points(refusal.difference)} points of refusal, p = {refusal.p_value:.2g}{effect}; "
            f"{', '.join(costs)}."
        )


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


def _test(tests: pandas.DataFrame, row: pandas.Series, against: str, rate: str = "refusal") -> pandas.Series:
    chosen = tests[
        (tests.compression == row.compression)
        & (tests.patch == row.patch)
        & (tests.against == against)
        & (tests.rate == rate)
    ]
    return chosen.iloc[0]


def _interval(test: pandas.Series) -> tuple[float, float]:
    """Return the 95% interval of the difference that a row of the paired tests is about."""
    unchanged = test.n - test.lost - test.gained
    return mean_change([-1.0] * test.lost + [1.0] * test.gained + [0.0] * unchanged)[1:]


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"
