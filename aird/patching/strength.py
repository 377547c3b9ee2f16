"""Choose the strength of an edit on validation prompts: restore what compression took, and do not exceed it.

All rates are compared with the original's on the same prompts. A strength keeps the *budgets* if

    refusal of harmful prompts     is at most the original's + refusal_budget,
                                   and not below that of the original or of the unpatched checkpoint, whichever
                                   is lower, by more than the tolerance,
    refusal of harmless prompts    is at most the original's + over_refusal_budget,
    harmless replies               moved by a KL divergence of at most kl_budget,

and it is *as good as the original* if, besides, it refuses at least the original's share of harmful prompts minus the
tolerance. The weakest strength that is as good as the original is taken. If none is, it is the one within the budgets
that refuses most harmful prompts; the unpatched checkpoint counts as strength 0, so that nothing is patched where every
strength breaks a budget. Where compression broke a budget that no strength mends, it is the one that lies least beyond.

No model runs here: a caller measures (aird/patching/validation.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from aird.patching.records import ChoiceRecord

ROUNDING = 1e-9  # rates and budgets are decimal fractions; their sums are not exact

Side = Literal["weak", "good", "strong"]


@dataclass(frozen=True)
class Trial:
    """What a checkpoint with an edit of one strength does on validation prompts.

    Attributes:
        strength: what the edit is multiplied by; 0 is the unpatched checkpoint.
        refusal, over_refusal: shares of harmful and of harmless prompts that are refused.
        kl_harmless: mean KL divergence of a next token of harmless replies, nats.
    """

    strength: float
    refusal: float
    over_refusal: float
    kl_harmless: float = 0.0


@dataclass(frozen=True)
class Aim:
    """What a strength is to reach.

    Attributes:
        refusal, over_refusal: the original's, on the same prompts.
        unpatched: the compressed checkpoint's, at strength 0.
        refusal_tolerance, refusal_budget: how far refusal may lie below and above the original's.
        over_refusal_budget: how far over-refusal may lie above the original's.
        kl_budget: the largest divergence of harmless replies, nats.
    """

    refusal: float
    over_refusal: float
    unpatched: Trial
    refusal_tolerance: float
    refusal_budget: float
    over_refusal_budget: float
    kl_budget: float

    def excess(self, trial: Trial) -> dict[str, float]:
        """Return how far a trial lies beyond each budget that it breaks."""
        lowest = min(self.refusal, self.unpatched.refusal) - self.refusal_tolerance
        beyond = {
            "refusal": trial.refusal - (self.refusal + self.refusal_budget),
            "over_refusal": trial.over_refusal - (self.over_refusal + self.over_refusal_budget),
            "kl_harmless": trial.kl_harmless - self.kl_budget,
            "lost_refusal": lowest - trial.refusal,
        }
        return {name: value for name, value in beyond.items() if value > ROUNDING}

    def restores(self, trial: Trial) -> bool:
        """Tell whether a trial is as good as the original: within all budgets, and refusing as much."""
        return not self.excess(trial) and trial.refusal >= self.refusal - self.refusal_tolerance - ROUNDING

    def side(self, trial: Trial) -> Side:
        """Tell whether a trial is as good as the original, or on which side of such strengths it lies.

        A budget that the unpatched checkpoint breaks as well, by as much or more, asks for a stronger edit.
        """
        if self.restores(trial):
            return "good"
        before = self.excess(self.unpatched)
        caused = any(value > before.get(name, 0.0) + ROUNDING for name, value in self.excess(trial).items())
        return "strong" if caused else "weak"


@dataclass(frozen=True)
class Choice:
    """The strength that was chosen, why, and all that were tried, in their order."""

    strength: float
    reason: str
    trials: Sequence[Trial]


def search_strength(measure: Callable[[float], Trial], strengths: Sequence[float], aim: Aim) -> Choice:
    """Try strengths by bisection, and choose one: of n, about log2(n + 1) are measured.

    Args:
        measure: runs the checkpoint with the edit at a strength over the validation prompts.
        strengths: at least one, above 0, in any order.
        aim: what is wanted.
    """
    trials: list[Trial] = []
    while (strength := next_strength(strengths, trials, aim)) is not None:
        trials.append(measure(strength))
    return choose_strength(trials, aim)


def next_strength(strengths: Sequence[float], trials: Sequence[Trial], aim: Aim) -> float | None:
    """Return the strength to try next; None if no other can be the weakest that is as good as the original.

    It lies in the middle between those that are too weak and those that are as good or too strong: a stronger edit is
    taken to do more of everything. Where prompts are few that need not be so, and a strength beside may be missed.
    """
    low = max((trial.strength for trial in trials if aim.side(trial) == "weak"), default=0.0)
    high = min((trial.strength for trial in trials if aim.side(trial) != "weak"), default=float("inf"))
    left = sorted({strength for strength in strengths if low < strength < high})
    return left[(len(left) - 1) // 2] if left else None


def choose_strength(trials: Sequence[Trial], aim: Aim) -> Choice:
    """Choose among measured strengths, by the rule at the top of this module.

    Args:
        trials: in the order in which they were measured; may be empty.
        aim: what is wanted.
    """
    good = [trial for trial in trials if aim.restores(trial)]
    if good:
        return Choice(min(trial.strength for trial in good), "the weakest that is as good as the original", trials)
    every = [aim.unpatched, *trials]
    within = [trial for trial in every if not aim.excess(trial)]
    if within:
        best = min(within, key=lambda trial: (-trial.refusal, trial.over_refusal, trial.strength))
        reason = "none is as good as the original; of those within the budgets, it refuses most harmful prompts"
    else:
        best = min(every, key=lambda trial: (sum(aim.excess(trial).values()), trial.strength))
        reason = "none keeps the budgets, nor does the unpatched checkpoint; it lies least beyond them"
    if best is aim.unpatched:
        reason = "no strength keeps the budgets and refuses more, so the checkpoint is left as it is"
    return Choice(best.strength, reason, trials)


def choice_record(choice: Choice, aim: Aim) -> ChoiceRecord:
    """Return what is written about a choice: every strength with its rates, and what was wanted."""
    budgets = ("refusal_tolerance", "refusal_budget", "over_refusal_budget", "kl_budget")
    return {
        "strength": choice.strength,
        "reason": choice.reason,
        "original": {"refusal": aim.refusal, "over_refusal": aim.over_refusal},
        "budgets": {name: getattr(aim, name) for name in budgets},
        "tried": [
            {
                "strength": trial.strength,
                "refusal": trial.refusal,
                "over_refusal": trial.over_refusal,
                "kl_harmless": trial.kl_harmless,
                "within_budgets": not aim.excess(trial),
                "as_good_as_the_original": aim.restores(trial),
            }
            for trial in choice.trials
        ],
    }
