"""Choose the strength of an edit on validation prompts: the one that decides as the original does, within budgets.

All rates are compared with the original's on the same prompts. A strength keeps the *budgets* if

    refusal of harmful prompts     is at most the original's + refusal_budget, and not below that of the original or of
                                   the unpatched checkpoint, whichever is lower, by more than refusal_budget,
    refusal of harmless prompts    is at most the original's + over_refusal_budget,
    harmless replies               moved by a KL divergence of at most kl_budget.

Of those within the budgets the one is taken whose decisions lie nearest to the original's (`distance`). The unpatched
checkpoint counts as strength 0, unless a patch is asked for in any case: then it is only what remains where every
strength breaks a budget. If nothing keeps the budgets, it is what lies least beyond them.

A rate of refusal can be right with the wrong prompts refused: a distance that is taken prompt by prompt is not misled,
and it needs no prompt to change sides before it tells two strengths apart.

No model runs here: a caller measures (aird/patching/validation.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aird.patching.records import ChoiceRecord

ROUNDING = 1e-9  # rates and budgets are decimal fractions; their sums are not exact


@dataclass(frozen=True)
class Trial:
    """What a checkpoint with an edit of one strength does on validation prompts.

    Attributes:
        strength: what the edit is multiplied by; 0 is the unpatched checkpoint.
        refusal, over_refusal: shares of harmful and of harmless prompts that are refused.
        distance: of its decisions from the original's, at least 0; infinite where it is taken only for want of another.
        kl_harmless: mean KL divergence of a next token of harmless replies, nats.
    """

    strength: float
    refusal: float
    over_refusal: float
    distance: float
    kl_harmless: float = 0.0


@dataclass(frozen=True)
class Aim:
    """What a strength is to reach.

    Attributes:
        refusal, over_refusal: the original's, on the same prompts.
        unpatched: the compressed checkpoint's, at strength 0.
        refusal_budget: how far refusal may lie above the original's, and below the lowest that is wanted.
        over_refusal_budget: how far over-refusal may lie above the original's.
        kl_budget: the largest divergence of harmless replies, nats.
    """

    refusal: float
    over_refusal: float
    unpatched: Trial
    refusal_budget: float
    over_refusal_budget: float
    kl_budget: float

    def excess(self, trial: Trial) -> dict[str, float]:
        """Return how far a trial lies beyond each budget that it breaks."""
        lowest = min(self.refusal, self.unpatched.refusal) - self.refusal_budget
        beyond = {
            "refusal": trial.refusal - (self.refusal + self.refusal_budget),
            "over_refusal": trial.over_refusal - (self.over_refusal + self.over_refusal_budget),
            "kl_harmless": trial.kl_harmless - self.kl_budget,
            "lost_refusal": lowest - trial.refusal,
        }
        return {name: value for name, value in beyond.items() if value > ROUNDING}


@dataclass(frozen=True)
class Choice:
    """The strength that was chosen, why, what was tried, in its order, and how far each strength's decisions lie."""

    strength: float
    reason: str
    trials: Sequence[Trial] = ()
    distances: dict[float, float] = field(default_factory=dict)


def search_strength(
    measure: Callable[[float, float], Trial], distance: Callable[[float], float], strengths: Sequence[float], aim: Aim
) -> Choice:
    """Choose a strength: the nearest is tried first, and then the next, until one keeps the budgets.

    Args:
        measure: runs the checkpoint with the edit over the validation prompts, of a strength and of its distance.
        distance: of the decisions at a strength from the original's.
        strengths: at least one, above 0, in any order.
        aim: what is wanted.
    """
    distances = {0.0: aim.unpatched.distance} | {strength: distance(strength) for strength in sorted(set(strengths))}
    trials: list[Trial] = []
    for strength in sorted(distances, key=lambda strength: (distances[strength], strength)):
        if strength:
            trials.append(measure(strength, distances[strength]))
        tried = trials[-1] if strength else aim.unpatched
        if not aim.excess(tried):
            reason = "of those within the budgets, it decides most like the original"
            if not strength:
                reason = "no strength keeps the budgets and decides more like the original, so nothing is patched"
            return Choice(strength, reason, trials, distances)
    best = min([aim.unpatched, *trials], key=lambda trial: (sum(aim.excess(trial).values()), trial.strength))
    reason = "none keeps the budgets, nor does the unpatched checkpoint; it lies least beyond them"
    return Choice(best.strength, reason, trials, distances)


def choice_record(choice: Choice, aim: Aim) -> ChoiceRecord:
    """Return what is written about a choice: every strength with its rates, and what was wanted."""
    budgets = ("refusal_budget", "over_refusal_budget", "kl_budget")
    return {
        "strength": choice.strength,
        "reason": choice.reason,
        "original": {"refusal": aim.refusal, "over_refusal": aim.over_refusal},
        "budgets": {name: getattr(aim, name) for name in budgets},
        "distances": {f"{strength:g}": distance for strength, distance in choice.distances.items() if strength},
        "tried": [
            {
                "strength": trial.strength,
                "refusal": trial.refusal,
                "over_refusal": trial.over_refusal,
                "distance": trial.distance,
                "kl_harmless": trial.kl_harmless,
                "within_budgets": not aim.excess(trial),
            }
            for trial in choice.trials
        ],
    }
