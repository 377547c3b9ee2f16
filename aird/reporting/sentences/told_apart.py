"""Sensitivity, threshold and flips in words: of each compression against its original, and of its repair.

What is certain stands in the words of `aird check` (aird/evaluation/kind_of_loss.py), which paired.csv holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from aird.reporting.claims.statement import Proposition, Statement
from aird.reporting.sentences.numbers import paired_test, whole_percent
from aird.reporting.table import INTERVAL
from aird.reporting.verdicts import HOLDS, UNDECIDED, all_of
from aird.settings.base import ORIGINAL

TITLES = {"sensitivity": "d'", "auc": "the AUC of first tokens"}  # by the beginning of their columns


def told_apart(checkpoint: pandas.Series, tests: pandas.DataFrame, who: str) -> str:
    """Return sentences about how well a checkpoint tells harmful from harmless prompts; empty where that is unknown.

    Args:
        checkpoint: a row of the summary, not of the original.
        tests: the paired tests of its suite and model.
        who: names the checkpoint.
    """
    test = paired_test(tests, checkpoint, ORIGINAL)
    if pandas.isna(test.sensitivity_change):
        return ""
    return (
        f"{who[0].upper()}{who[1:]}: {test.kind_of_loss}. Against the original {_changes(test)}. "
        f"{_flips(tests, checkpoint)}.{_restored(test)}"
    )


def _changes(test: pandas.Series) -> str:
    """Return how d' and the AUC of first tokens change, with their paired intervals."""
    told = []
    for name, title in TITLES.items():
        value, low, high = (test[f"{name}_change{end}"] for end in INTERVAL)
        if pandas.isna(value):
            told.append(f"{title} is not measured")
        else:
            told.append(f"{title} {'' if told else 'changes '}by {value:+.2f} ({low:+.2f} to {high:+.2f})")
    return " and ".join(told)


def _flips(tests: pandas.DataFrame, checkpoint: pandas.Series) -> str:
    """Return how many prompts of each kind a checkpoint decides otherwise than the original, both ways."""
    harmful, harmless = (paired_test(tests, checkpoint, ORIGINAL, rate) for rate in ("refusal", "over_refusal"))
    return (
        f"Of {harmful.n} harmful prompts {harmful.lost} are no longer refused and {harmful.gained} newly, of "
        f"{harmless.n} harmless ones {harmless.lost} and {harmless.gained}"
    )


def _restored(test: pandas.Series) -> str:
    """Return a sentence about the share of the lost that a patch brings back; empty where no loss is certain."""
    shares = []
    for name, title in TITLES.items():
        value, low, high = (test[f"{name}_restored{end}"] for end in INTERVAL)
        if not pandas.isna(value):
            shares.append(f"{whole_percent(value)} ({100 * low:.0f} to {100 * high:.0f}%) of {title}")
    return f" Of what was lost it restores {' and '.join(shares)}." if shares else ""


def restoration_in_words(claims: Sequence[Statement]) -> str:
    """Return whether a repair with refusals to bring back restores sensitivity too, by the statements about it."""
    verdicts = {claim.proposition: claim.verdict for claim in claims}
    asked = [verdicts[name] for name in (Proposition.SENSITIVITY, Proposition.AUC) if name in verdicts]
    whole = all_of(asked)
    if not asked:
        return ""
    if whole.name == UNDECIDED:
        return f" Whether it restores sensitivity is undecided: {whole.reason}."
    if whole.name != HOLDS:
        return f" {whole.reason[0].upper()}{whole.reason[1:]}."
    back = verdicts[Proposition.RAISES_REFUSAL].name == HOLDS
    return " Refusals and sensitivity are restored." if back else ""
