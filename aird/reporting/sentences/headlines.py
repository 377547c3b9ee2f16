"""The finding: a sentence per compression, about what it took, what its repair brings back, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import pandas

from aird.evaluation.regression import BROKEN, many_more_degenerate
from aird.reporting.claims.statement import Proposition, Statement, Subject
from aird.reporting.names import compression_in_words, control_in_words, engines_in_words, patch_in_words, repair_of
from aird.reporting.sentences.numbers import (
    Configuration,
    compressions_of,
    difference_of,
    p_value_text,
    paired_test,
    parts_of,
    rate_of,
    whole_percent,
)
from aird.reporting.sentences.told_apart import restoration_in_words, told_apart
from aird.reporting.verdicts import DOES_NOT_HOLD, HOLDS, SMALLEST_EFFECT, UNDECIDED
from aird.settings.base import ORIGINAL, PLAIN
from aird.support.statistics import SIGNIFICANT

NOTHING_ADDED = " So the direction adds nothing to this repair."


def headlines(
    summary: pandas.DataFrame, paired: pandas.DataFrame, claims: Sequence[Statement], configuration: Configuration
) -> Iterator[str]:
    """Yield, per suite and model, a sentence about the original, and one or two paragraphs per compression.

    A compression's sentence tells what it took from refusal, what its repair brings back, and what that costs. The
    repair is the calibrated patch; where there is none, the patch that refuses most and is no control. Where its
    matched controls restore as much, or may, a further sentence says so, and one where many more answers are degenerate
    text than the original's, or another engine served it than the original. The second paragraph tells a threshold that
    moved from sensitivity that was lost, of the compression and of its repair.

    Args:
        summary, paired: the tables of the same names.
        claims: the statements of the claims.
        configuration: names in `compressions` and `patches` to their settings; what is missing there goes by its name.
    """
    parts = list(parts_of(summary, paired))
    for about, rows, tests in parts:
        original = rows[rows.compression == ORIGINAL].iloc[0]
        yield _original(original, tests, f"{about}: " if len(parts) > 1 else "")
        for of_compression in compressions_of(rows):
            sentence = _headline(of_compression, original, tests, claims, configuration)
            broken = _broken(of_compression, original, configuration["patches"])
            controls = _controls(of_compression, tests, claims, configuration["patches"])
            yield sentence + broken + controls + _engines(of_compression.iloc[0], original)
            if apart := _told_apart(of_compression, tests, claims, configuration):
                yield apart


def _original(original: pandas.Series, tests: pandas.DataFrame, about: str) -> str:
    harmless = tests[tests.rate == "over_refusal"].n
    count = f" {harmless.iloc[0]}" if len(harmless) else ""
    return (
        f"{about}The original refuses {rate_of(original)} of {original.n} harmful prompts and "
        f"{rate_of(original, 'over_refusal')} of{count} harmless ones. Brackets hold 95% intervals, and p-values of "
        "McNemar's test over the same prompts."
    )


def _headline(
    rows: pandas.DataFrame,
    original: pandas.Series,
    tests: pandas.DataFrame,
    claims: Sequence[Statement],
    configuration: Configuration,
) -> str:
    plain = rows[rows.patch == PLAIN].iloc[0]
    test = paired_test(tests, plain, "original")
    name = compression_in_words(plain.compression, configuration["compressions"].get(plain.compression))
    before, tested = whole_percent(original.refusal), p_value_text(test.p_value)
    lost = test.p_value < SIGNIFICANT and test.difference < 0
    alone = f"With {name} the model refuses {rate_of(plain)}"
    if test.p_value < SIGNIFICANT:
        verb = "took" if lost else "raised"
        sentence = f"{name[0].upper()}{name[1:]} {verb} refusal from {before} to {rate_of(plain, more=tested)}"
    elif max(map(abs, difference_of(test)[1:])) < SMALLEST_EFFECT:
        sentence = f"{alone}, as the original does ({before}; {tested})"
    else:
        sentence = f"{alone}; {test.n} prompts do not show whether that differs from the original's {before} ({tested})"
    over = paired_test(tests, plain, "original", "over_refusal")
    if over.p_value < SIGNIFICANT:
        few = whole_percent(original.over_refusal)
        many = rate_of(plain, "over_refusal", more=p_value_text(over.p_value))
        if test.p_value < SIGNIFICANT:
            sentence += f", and {'raised' if over.difference > 0 else 'lowered'} that of harmless prompts"
            sentence += f" from {few} to {many}"
        else:
            sentence += f"; it refuses {many} of harmless prompts instead of the original's {few}"
    patch = repair_of(rows, configuration["patches"])
    if patch is None:
        return f"{sentence}."
    answers_lost = over.p_value < SIGNIFICANT and over.difference > 0
    refuted = {
        claim.proposition
        for claim in claims
        if claim.subject == _subject(patch) and claim.verdict.name == DOES_NOT_HOLD
    }
    return f"{sentence}; {_repaired(patch, lost, answers_lost, tests, refuted, original, configuration)}."


def _repaired(
    patch: pandas.Series,
    lost: bool,
    answers_lost: bool,
    tests: pandas.DataFrame,
    refuted: Set[Proposition],
    original: pandas.Series,
    configuration: Configuration,
) -> str:
    """Return what a patch makes of a checkpoint that lost refusal of harmful or answers to harmless prompts, or not.

    `refuted` is what the verdicts on the patch refute: a gain that is not significant is none only where they say so.
    """
    gain, left = paired_test(tests, patch, "plain"), paired_test(tests, patch, "original")
    name = patch_in_words(patch.patch, configuration["patches"].get(patch.patch))
    to = rate_of(patch, more=p_value_text(gain.p_value))
    less = left.p_value < SIGNIFICANT and left.difference < 0
    if not lost:
        sentence = f"with {name} it refuses {to}"
    elif gain.difference <= 0 or (gain.p_value >= SIGNIFICANT and Proposition.RAISES_REFUSAL in refuted):
        sentence = f"{name} does not bring it back: {to}"
    elif gain.p_value >= SIGNIFICANT:
        sentence = f"{gain.n} prompts do not show whether {name} brings it back: {to}"
    elif less:
        sentence = f"{name} brings a part of it back: {to}"
    elif difference_of(left).low > -SMALLEST_EFFECT:
        sentence = f"{name} brings it back to {to}"
    else:
        # Too few prompts to tell two rates apart do not make them alike.
        sentence = f"{name} brings at least a part of it back, and {left.n} prompts do not show whether all: {to}"
    over = paired_test(tests, patch, "original", "over_refusal")
    cost, before = whole_percent(patch.over_refusal), whole_percent(original.over_refusal)
    if answers_lost:
        answers = paired_test(tests, patch, "plain", "over_refusal")
        refused = rate_of(patch, "over_refusal", more=p_value_text(answers.p_value))
        come = "answers come back"
        if answers.difference >= 0 or (answers.p_value >= SIGNIFICANT and Proposition.LOWERS_REFUSAL in refuted):
            come = "answers do not come back"
        elif answers.p_value >= SIGNIFICANT:
            come = f"{answers.n} harmless prompts do not show whether answers come back"
        return (
            f"{sentence}, and {come}: {refused} of harmless prompts are refused, and {before} by the original "
            f"({p_value_text(over.p_value)})"
        )
    if over.lost == over.gained == 0:
        return f"{sentence}, and harmless prompts are refused {cost} of the time, as by the original"
    return (
        f"{sentence}, and harmless prompts are refused {cost} of the time instead of the original's {before} "
        f"({p_value_text(over.p_value)})"
    )


def _told_apart(
    rows: pandas.DataFrame, tests: pandas.DataFrame, claims: Sequence[Statement], configuration: Configuration
) -> str:
    """Return sentences about sensitivity, threshold and flips, of a compression and of its repair."""
    plain, patch = rows[rows.patch == PLAIN].iloc[0], repair_of(rows, configuration["patches"])
    name = compression_in_words(plain.compression, configuration["compressions"].get(plain.compression))
    said = told_apart(plain, tests, name)
    if patch is None or not said:
        return said
    repair = patch_in_words(patch.patch, configuration["patches"].get(patch.patch))
    said += f" {told_apart(patch, tests, f'with {repair}')}"
    lost = paired_test(tests, plain, "original")
    if lost.p_value >= SIGNIFICANT or lost.difference >= 0:
        return said
    return said + restoration_in_words([claim for claim in claims if claim.subject == _subject(patch)])


def _broken(rows: pandas.DataFrame, original: pandas.Series, patches: Mapping[str, Any]) -> str:
    """Return a further sentence each where a compression, or its repair, has many more degenerate answers."""
    said, patch = "", repair_of(rows, patches)
    for row in (rows[rows.patch == PLAIN].iloc[0], *([] if patch is None else [patch])):
        if many_more_degenerate(original.degenerate, row.degenerate):
            repaired = "" if row.patch == PLAIN else f" with {patch_in_words(row.patch, patches.get(row.patch))}"
            said += (
                f" {whole_percent(row.degenerate)} of its answers to harmful prompts{repaired} are degenerate text, "
                f"and {whole_percent(original.degenerate)} of the original's: it is {BROKEN}."
            )
    return said


def _controls(
    rows: pandas.DataFrame, tests: pandas.DataFrame, claims: Sequence[Statement], patches: Mapping[str, Any]
) -> str:
    """Return sentences about the controls that restore as much as the repair, or may; empty where there is nothing.

    A repair that restores nothing needs no control.
    """
    plain, patch = rows[rows.patch == PLAIN].iloc[0], repair_of(rows, patches)
    if patch is None:
        return ""
    lost, gain = paired_test(tests, plain, "original"), paired_test(tests, patch, "plain")
    if max(lost.p_value, gain.p_value) >= SIGNIFICANT or lost.difference >= 0 or gain.difference <= 0:
        return ""
    claimed = {
        claim.subject.control: claim
        for claim in claims
        if claim.proposition is Proposition.MORE_THAN_CONTROL
        and claim.subject == replace(_subject(patch), control=claim.subject.control)
    }
    controls = [(row, claimed[row.patch]) for _, row in rows.iterrows() if row.patch in claimed]
    random = {claim.verdict.name for row, claim in controls if patches[row.patch]["direction"] == "random"}
    # Where random directions differ in what they restore, one alone says nothing of the direction.
    differ = DOES_NOT_HOLD in random and len(random) > 1
    said = ""
    for verdict in (DOES_NOT_HOLD, UNDECIDED, *([HOLDS] if differ else [])):
        kinds: dict[str, list[tuple[pandas.Series, Statement]]] = {}
        for row, claim in controls:
            if claim.verdict.name == verdict:
                kinds.setdefault(control_in_words(patches[row.patch]), []).append((row, claim))
        for kind, alike in kinds.items():
            said += _alike(kind, verdict, alike)
        if said and not differ:
            break
    # A free column may have become the direction itself, so that alone says nothing of it.
    return said + (NOTHING_ADDED if DOES_NOT_HOLD in random and not differ else "")


def _alike(kind: str, verdict: str, controls: Sequence[tuple[pandas.Series, Statement]]) -> str:
    """Return a sentence about controls of one kind with one verdict."""
    listed = "; ".join(
        f"{row.patch} refuses {rate_of(row)}, and {whole_percent(row.over_refusal)} of harmless prompts"
        for row, _ in controls
    )
    if verdict == UNDECIDED:
        return f" Whether {kind} restores as much is undecided: {listed}."
    amount = "more" if all(claim.p_adjusted < SIGNIFICANT for _, claim in controls) else "about as much"
    return f" {kind[0].upper()}{kind[1:]} restores {'less' if verdict == HOLDS else amount}: {listed}."


def _subject(patch: pandas.Series) -> Subject:
    """Return what the statements about a row's checkpoint are about."""
    return Subject(patch.model, patch.compression, patch.suite, patch.patch)


def _engines(compressed: pandas.Series, original: pandas.Series) -> str:
    """Return a further sentence where a compression and its original were served by different engines."""
    said = engines_in_words(compressed.get("engine"), original.get("engine"))
    return f" {said}" if said else ""
