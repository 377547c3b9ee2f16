"""What attacks reach: a sentence about the original and one per compression."""

from __future__ import annotations

from collections.abc import Iterator

import pandas

from aird.inference.refusals import REFUSAL_JUDGE
from aird.reporting.names import compression_in_words, patch_in_words, repair_of
from aird.reporting.sentences.numbers import Configuration, compressions_of, points, whole_percent
from aird.reporting.verdicts import ALL, ATTACK_MARGIN, DOES_NOT_HOLD, HOLDS, UNDECIDED
from aird.settings.attacks import NO_ATTACK
from aird.settings.base import ORIGINAL, PLAIN
from aird.support.statistics import SIGNIFICANT, holm


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
        alone = whole_percent(original[original.attack == NO_ATTACK][f"asr_{REFUSAL_JUDGE}"].iloc[0])
        compared = tests[(tests.against == ORIGINAL) & (tests.attack == ALL)]
        told = "Without an attack the original gives in to"
        if len(compared):
            share, count = whole_percent(compared.reference.iloc[0]), compared.n.iloc[0]
            told = (
                f"Under {len(tried)} attacks the original gives in to {share} of the attempts on a prompt, as a mean "
                f"over {count} prompts, and without an attack to"
            )
        yield f"{about}{told} {alone} of the prompts, by Arditi's phrases. Brackets hold 95% intervals over prompts."
        for of_compression in compressions_of(of_summary):
            compression = of_compression.compression.iloc[0]
            name = compression_in_words(compression, configuration["compressions"].get(compression))
            plain = _gives_in(tests, PLAIN, compression)
            sentence = f"{name[0].upper()}{name[1:]} gives in to {plain}"
            patch = repair_of(of_compression, configuration["patches"])
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
    difference, low, high = map(points, (test.difference, test.low, test.high))
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
