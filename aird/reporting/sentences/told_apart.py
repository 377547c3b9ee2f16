"""Sensitivity, threshold and flips in words: of each compression against its original, and of its repair.

What is certain stands in the words of `aird check` (aird/evaluation/kind_of_loss.py), which paired.csv holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas

from aird.evaluation.kind_of_loss import signed_with_interval
from aird.reporting.claims.statement import Proposition, Statement
from aird.reporting.sentences.numbers import paired_test, whole_percent
from aird.reporting.table import INTERVAL
from aird.reporting.verdicts import HOLDS, UNDECIDED, all_of
from aird.settings.base import ORIGINAL
from aird.support.statistics import Estimate

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
    for title, change in _estimates(test, "change"):
        if pandas.isna(change.value):
            told.append(f"{title} is not measured")
        else:
            told.append(f"{title} {'' if told else 'changes '}by {signed_with_interval(change)}")
    return " and ".join(told)


def _estimates(test: pandas.Series, what: str) -> Iterator[tuple[str, Estimate]]:
    """Yield what is estimated of d' and of the AUC, in words, with the estimate; not a number where there is none."""
    for name, title in TITLES.items():
        yield title, Estimate(*(test[f"{name}_{what}{end}"] for end in INTERVAL))


def _flips(tests: pandas.DataFrame, checkpoint: pandas.Series) -> str:
    """Return how many prompts of each kind a checkpoint decides otherwise than the original, both ways."""
    harmful, harmless = (paired_test(tests, checkpoint, ORIGINAL, rate) for rate in ("refusal", "over_refusal"))
    return (
        f"Of {harmful.n} harmful prompts {harmful.lost} are no longer refused and {harmful.gained} newly, of "
        f"{harmless.n} harmless ones {harmless.lost} and {harmless.gained}"
    )


def _restored(test: pandas.Series) -> str:
    """Return a sentence about the share of the lost that a patch brings back; empty where no loss is certain."""
    shares = [
        f"{whole_percent(share.value)} ({100 * share.low:.0f} to {100 * share.high:.0f}%) of {title}"
        for title, share in _estimates(test, "restored")
        if not pandas.isna(share.value)
    ]
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
