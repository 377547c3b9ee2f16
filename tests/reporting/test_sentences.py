"""The finding in words says what the tables say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml
from conftest import ROOT
from frames import BOUNDS, write_tables
from project import run_script
from snakemake.utils import update_config

from aird.configuration.loading import load_configuration
from aird.plugin import METHODS
from aird.reporting.claims.statement import Proposition, Statement, Subject, read_statements
from aird.reporting.figures.drawing import read_table
from aird.reporting.names import compression_in_words, matched_controls, patch_in_words
from aird.reporting.sentences.details import details
from aird.reporting.sentences.headlines import headlines
from aird.reporting.sentences.numbers import whole_percent
from aird.reporting.sentences.verdicts import verdict_sentences
from aird.reporting.tables import all_tables
from aird.reporting.verdicts import ALL, DOES_NOT_HOLD, HOLDS, SHIFTED, UNDECIDED, Verdict

CONFIGURATION: dict[str, Any] = {
    "compressions": {"pruned": {"recipe": "wanda", "sparsity": 0.5, "calibration": {"prompt_set": "harmless"}}},
    "patches": {
        "aird": {"method": "scale", "direction": "original"},
        "learnt": {"method": "calibrate", "direction": "original"},
        "control": {"method": "calibrate", "direction": "random"},
        "second": {"method": "calibrate", "direction": "random", "seed": 1},
        "free": {"method": "calibrate", "direction": "free"},
        "formula": {"method": "scale", "direction": "random"},
    },
}


def tables() -> tuple[pandas.DataFrame, pandas.DataFrame, pandas.DataFrame]:
    columns = "suite model compression patch n refusal over_refusal perplexity utility".split()
    summary = pandas.DataFrame(
        [
            ["safety", "m", "original", "plain", 200, 0.95, 0.05, 10.0, 0.8],
            ["safety", "m", "pruned", "plain", 200, 0.50, 0.05, 20.0, 0.7],
            ["safety", "m", "pruned", "aird", 200, 0.70, 0.08, 21.0, 0.69],
        ],
        columns=columns,
    )
    summary = summary.assign(
        refusal_low=summary.refusal - 0.04,
        refusal_high=summary.refusal + 0.03,
        over_refusal_low=summary.over_refusal - 0.02,
        over_refusal_high=summary.over_refusal + 0.05,
        degenerate=0.02,
    )
    columns = "suite model compression patch against rate n difference lost gained p_value".split()
    paired = pandas.DataFrame(
        [
            ["safety", "m", "pruned", "plain", "original", "refusal", 200, -0.45, 90, 0, 1e-20],
            ["safety", "m", "pruned", "plain", "original", "over_refusal", 100, 0.0, 2, 2, 1.0],
            ["safety", "m", "pruned", "aird", "plain", "refusal", 200, 0.20, 0, 40, 1e-9],
            ["safety", "m", "pruned", "aird", "original", "refusal", 200, -0.25, 50, 0, 1e-12],
            ["safety", "m", "pruned", "aird", "plain", "over_refusal", 100, 0.03, 0, 3, 0.25],
            ["safety", "m", "pruned", "aird", "original", "over_refusal", 100, 0.03, 1, 4, 0.375],
        ],
        columns=columns,
    )
    paired = paired.reindex(columns=[column.name for column in all_tables()["paired"].columns])
    columns = (
        "model compression layer position cosine_same_site_shared norm_ratio original_layer original_position".split()
    )
    columns += ["split_half_null_low", "split_half_null_high"]
    columns += ["cosine_same_site_corrected", "cosine_same_site_corrected_low", "cosine_same_site_corrected_high"]
    columns += ["rule", "resampled_same_site", "cosmic_layer", "cosmic_position", "cosmic_agrees"]
    other = [0.55, 0.5, 0.61, "relaxed_kl", 0.62, 8, -2, False]
    directions = pandas.DataFrame([["m", "pruned", 9, -1, 0.6, 0.5, 12, -1, 0.9, 0.97, *other]], columns=columns)
    return summary, paired, directions


def test_another_engine_than_the_originals_is_said() -> None:
    summary, paired, _ = tables()

    def told(*engines: str) -> str:
        return list(headlines(summary.assign(engine=engines), paired, claims(), CONFIGURATION))[1]

    note = "llama.cpp served it and vLLM the original: this measures engine and compression at once"
    assert note in told("vLLM", "llama.cpp", "llama.cpp")
    assert "served it" not in told("vLLM", "vLLM", "vLLM")


@pytest.mark.parametrize(("share", "told"), [(0.11, ""), (0.125, "13%"), (1.0, "100%")])
def test_many_more_degenerate_answers_than_the_originals_are_said(share: float, told: str) -> None:
    """As by `aird check`: a rate of refusal says little of a checkpoint that babbles."""
    summary, paired, directions = tables()
    for patch, repaired in (("plain", ""), ("aird", " with aird")):
        summary["degenerate"] = 0.02
        summary.loc[(summary.compression == "pruned") & (summary.patch == patch), "degenerate"] = share
        sentence = list(headlines(summary, paired, claims(), CONFIGURATION))[1]
        assert sentence.count("degenerate text") == bool(told)
        assert not told or sentence.endswith(
            f". {told} of its answers to harmful prompts{repaired} are degenerate text, and 2% of the original's: it is "
            "broken in more than its refusal."
        )
        lines = [line for line in details(summary, paired, directions) if "degenerate" in line]
        assert [line.split()[0].strip(":") for line in lines] == ([patch.replace("plain", "pruned")] if told else [])


def claims(model: str = "m") -> list[Statement]:
    def stated(
        proposition: Proposition,
        compression: str,
        verdict: str,
        reason: str,
        patch: str = "",
        needed: int | None = None,
    ) -> Statement:
        suite = "" if proposition.claim == "C2" else "safety"
        subject = Subject(model, compression, suite, patch)
        return Statement(proposition, subject, Verdict(verdict, reason), "a test", needed=needed)

    return [
        stated(Proposition.DIRECTION_MOVES, "pruned", HOLDS, ""),
        stated(Proposition.KEPT_OR_MOVED, "pruned", UNDECIDED, "a model's own site is not stable"),
        stated(Proposition.KEPT_OR_MOVED, ALL, UNDECIDED, "pruned"),
        stated(Proposition.FOLLOWS, "pruned", HOLDS, ""),
        stated(Proposition.FURTHER, ALL, UNDECIDED, "too few", needed=4),
        stated(Proposition.REPAIRED, "pruned", DOES_NOT_HOLD, "so", "aird"),
        stated(Proposition.REPAIRED, ALL, DOES_NOT_HOLD, "pruned", "aird"),
    ]


def sentences(*refuted: Proposition, **changes: dict[str, Any]) -> list[str]:
    """Return the headlines after changes of (compression or patch)/(against)/(rate) rows of the paired tests.

    `refuted` is what does not hold of aird.
    """
    summary, paired, _ = tables()
    for key, values in changes.items():
        patch, against, rate = key.split("__")
        chosen = (paired.patch == patch) & (paired.against == against) & (paired.rate == rate)
        assert chosen.sum() == 1
        for column, value in values.items():
            paired.loc[chosen, column] = value
    subject = Subject("m", "pruned", "safety", "aird")
    more = [Statement(proposition, subject, Verdict(DOES_NOT_HOLD), "a test") for proposition in refuted]
    return list(headlines(summary, paired, [*claims(), *more], CONFIGURATION))


def test_the_first_sentence_is_about_the_original() -> None:
    assert sentences()[0] == (
        "The original refuses 95% (91 to 98%) of 200 harmful prompts and 5% (3 to 10%) of 100 harmless ones. "
        "Brackets hold 95% intervals, and p-values of McNemar's test over the same prompts."
    )


def test_a_compression_that_took_refusal_and_a_patch_that_brings_a_part_back() -> None:
    assert sentences()[1:] == [
        "Wanda pruning of 50% (pruned) took refusal from 95% to 50% (46 to 53%, p < 0.001); aird brings a part of it "
        "back: 70% (66 to 73%, p < 0.001), and harmless prompts are refused 8% of the time instead of the original's "
        "5% (not significant, p = 0.38)."
    ]


def test_a_patch_brings_refusal_back_where_nothing_that_matters_is_left_to_bring() -> None:
    no_less = sentences(aird__original__refusal={"difference": 0.01, "lost": 4, "gained": 6, "p_value": 0.8})[1]
    assert "; aird brings it back to 70% (66 to 73%, p < 0.001), and" in no_less
    fewer = sentences(aird__original__refusal={"difference": -0.05, "lost": 11, "gained": 1, "p_value": 0.006})[1]
    assert "brings a part of it back: 70%" in fewer


@pytest.mark.parametrize(("lost", "gained", "p_value"), [(5, 0, 0.06), (3, 2, 1.0), (2, 2, 1.0)])
def test_too_few_prompts_show_neither_that_all_came_back_nor_that_a_part_is_missing(
    lost: int, gained: int, p_value: float
) -> None:
    """Of twenty prompts three lost refusals and two gained ones are compatible with a loss of 28 points."""
    test = {"n": 20, "difference": (gained - lost) / 20, "lost": lost, "gained": gained, "p_value": p_value}
    assert (
        "; aird brings at least a part of it back, and 20 prompts do not show whether all: 70% (66 to 73%, p < 0.001), "
        "and harmless prompts are refused 8%"
    ) in sentences(aird__original__refusal=test)[1]
    plain = sentences(plain__original__refusal=test)[1]
    assert "; 20 prompts do not show whether that differs from the original's 95% (not significant, p =" in plain


@pytest.mark.parametrize("test", [{"difference": 0.0, "p_value": 1.0}, {"difference": -0.1, "p_value": 0.01}])
def test_a_patch_that_does_nothing_or_harm_brings_nothing_back(test: dict[str, float]) -> None:
    assert "; aird does not bring it back: 70% (66 to 73%, " in sentences(aird__plain__refusal=test)[1]


def test_a_gain_that_too_few_prompts_show_is_not_called_none() -> None:
    gain = {"difference": 0.05, "p_value": 0.06}
    told = sentences(aird__plain__refusal=gain)[1]
    assert "; 200 prompts do not show whether aird brings it back: 70% (66 to 73%, not significant, p = 0.06)" in told
    # Where any change that the data allow is too small to matter, the claim says that there is none.
    small = sentences(Proposition.RAISES_REFUSAL, aird__plain__refusal=gain)[1]
    assert "; aird does not bring it back: 70% (66 to 73%, not significant, p = 0.06)" in small
    rose = {"difference": 0.24, "lost": 0, "gained": 24, "p_value": 1e-7}
    lowered = {"difference": -0.06, "lost": 7, "gained": 1, "p_value": 0.07}
    losses = {"plain__original__over_refusal": rose, "aird__plain__over_refusal": lowered}
    told = sentences(**losses)[1]
    assert ", and 100 harmless prompts do not show whether answers come back: 8% (6" in told
    small = sentences(Proposition.LOWERS_REFUSAL, **losses)[1]
    assert ", and answers do not come back: 8%" in small


def test_what_is_not_significant_is_called_so() -> None:
    alike = {"difference": -0.01, "lost": 5, "gained": 3, "p_value": 0.7}
    sentence = sentences(plain__original__refusal=alike)[1]
    assert sentence.startswith(
        "With Wanda pruning of 50% (pruned) the model refuses 50% (46 to 53%), as the original does (95%; not "
        "significant, p = 0.7); with aird it refuses 70%"
    )
    too_few = sentences(plain__original__refusal={"difference": -0.5, "lost": 4, "p_value": 0.1, "n": 8})[1]
    assert "; 8 prompts do not show whether that differs from the original's 95% (not significant, p = 0.1)" in too_few


def test_a_compression_may_raise_refusal() -> None:
    sentence = sentences(plain__original__refusal={"difference": 0.04, "p_value": 0.01})[1]
    assert "Wanda pruning of 50% (pruned) raised refusal from 95% to 50% (46 to 53%, p = 0.01); with aird" in sentence


def apart(parts: dict[Proposition, tuple[str, str]] | None = None, **patched: Any) -> tuple[str, str, list[str]]:
    """Return what is said of sensitivity of the compression, and of its repair, and the details; of numbers by hand.

    Args:
        parts: verdicts and reasons of the claim about the repair.
        patched: other values in the repair's rows.
    """
    summary, paired, directions = tables()
    told = {"kind_of_loss": "it refuses less of everything", **bounds(auc_change=-0.3, sensitivity_change=-1.0)}
    of_plain, of_patch = ((paired.patch == patch) & (paired.against == "original") for patch in ("plain", "aird"))
    paired["kind_of_loss"] = paired["kind_of_loss"].astype(object)
    for rows, values in ((of_plain, told), (of_patch, {**told, **bounds(auc_restored=0.25), **patched})):
        for column, value in values.items():
            paired.loc[rows, column] = value
    subject = Subject("m", "pruned", "safety", "aird")
    judged = [Statement(name, subject, Verdict(*verdict), "a test") for name, verdict in (parts or {}).items()]
    *_, paragraph = headlines(summary, paired, [*claims(), *judged], CONFIGURATION)
    plain, found, patch = paragraph.partition(" With aird: ")
    assert plain.startswith("Wanda pruning of 50% (pruned): ") and found
    return plain, patch, list(details(summary, paired, directions))


def bounds(**values: float) -> dict[str, float]:
    return {f"{name}{end}": value + by for name, value in values.items() for end, by in BOUNDS.items()}


def test_a_moved_threshold_and_lost_sensitivity_are_told_with_numbers_and_flips() -> None:
    plain, patch, lines = apart()
    assert plain == (
        "Wanda pruning of 50% (pruned): it refuses less of everything. Against the original d' changes by -1.00 "
        "(-1.05 to -0.95) and the AUC of first tokens by -0.30 (-0.35 to -0.25). Of 200 harmful prompts 90 are no "
        "longer refused and 0 newly, of 100 harmless ones 2 and 2."
    )
    assert patch.endswith(
        "of 100 harmless ones 1 and 4. Of what was lost it restores 25% (20 to 30%) of the AUC of first tokens."
    )
    assert [line.partition(":")[0] for line in lines if "Against the original" in line] == ["  Pruned", "    Aird"]
    unknown = bounds(auc_change=math.nan, auc_restored=math.nan)
    _, patch, _ = apart(**unknown)
    assert "d' changes by -1.00 (-1.05 to -0.95) and the AUC of first tokens is not measured. Of" in patch
    assert "restores" not in patch


@pytest.mark.parametrize(
    ("sensitivity", "auc", "told"),
    [
        ((HOLDS,), (HOLDS,), " Refusals and sensitivity are restored."),
        ((DOES_NOT_HOLD, SHIFTED), (DOES_NOT_HOLD, SHIFTED), f" S{SHIFTED[1:]}."),
        ((HOLDS,), (DOES_NOT_HOLD, "the lost AUC does not come back"), " The lost AUC does not come back."),
        ((HOLDS,), (UNDECIDED, "it is open"), " Whether it restores sensitivity is undecided: it is open."),
    ],
)
def test_a_lower_threshold_is_not_called_a_repair(
    sensitivity: tuple[str, ...], auc: tuple[str, ...], told: str
) -> None:
    parts = {Proposition.SENSITIVITY: sensitivity, Proposition.AUC: auc, Proposition.RAISES_REFUSAL: (HOLDS,)}
    _, patch, _ = apart(parts)
    assert patch.endswith(f"of the AUC of first tokens.{told}")
    # Sensitivity that was kept is no repair of refusals.
    _, patch, _ = apart({**parts, Proposition.RAISES_REFUSAL: (UNDECIDED, "too few prompts changed")})
    assert ("are restored" in patch) is False


def test_the_calibrated_patch_speaks_for_a_compression_and_never_a_control() -> None:
    summary, paired, _ = tables()
    for name, refusal in (("learnt", 0.6), ("control", 0.99)):
        summary = pandas.concat([summary, summary.tail(1).assign(patch=name, refusal=refusal)], ignore_index=True)
        paired = pandas.concat([paired, paired[paired.patch == "aird"].assign(patch=name)], ignore_index=True)
    _, sentence = headlines(summary, paired, claims(), CONFIGURATION)
    assert "; the calibrated patch (learnt) brings a part of it back: 60%" in sentence
    without = {**CONFIGURATION, "patches": {**CONFIGURATION["patches"], "learnt": {"method": "project"}}}
    _, sentence = headlines(summary, paired, claims(), without)
    assert "; aird brings a part of it back: 70%" in sentence
    controls = summary[summary.patch.isin(["plain", "control"])]
    _, sentence = headlines(controls, paired, claims(), CONFIGURATION)
    assert sentence.endswith("to 50% (46 to 53%, p < 0.001).")


def judged_beside_controls(verdicts: dict[str, tuple[str, float]], repair: str = "learnt", gain: float = 1e-9) -> str:
    """Return the headline of a repair and its controls, with (verdict, adjusted p-value) against each of them."""
    summary, paired, _ = tables()
    for name, refusal in ((repair, 0.9), *dict.fromkeys(verdicts, 0.89).items()):
        if name != "aird":
            summary = pandas.concat([summary, summary.tail(1).assign(patch=name, refusal=refusal)], ignore_index=True)
            paired = pandas.concat([paired, paired[paired.patch == "aird"].assign(patch=name)], ignore_index=True)
    paired.loc[(paired.against == "plain") & (paired.rate == "refusal"), "p_value"] = gain
    more = [
        Statement(
            Proposition.MORE_THAN_CONTROL,
            Subject("m", "pruned", "safety", repair, name),
            Verdict(verdict),
            "a test",
            p_adjusted=p_adjusted,
        )
        for name, (verdict, p_adjusted) in verdicts.items()
    ]
    return list(headlines(summary, paired, [*claims(), *more], CONFIGURATION))[1]


def test_a_control_trained_alike_that_restores_as_much_is_told_in_a_sentence() -> None:
    refuses = "control refuses 89% (66 to 73%), and 8% of harmless prompts."
    end = f"{refuses} So the direction adds nothing to this repair."
    as_much = judged_beside_controls({"control": ("does not hold", 0.7)})
    assert as_much.endswith(f" A random direction, trained alike, restores about as much: {end}")
    more = judged_beside_controls({"control": ("does not hold", 0.01)})
    assert more.endswith(f" A random direction, trained alike, restores more: {end}")
    undecided = judged_beside_controls({"control": ("undecided", 0.2)})
    assert undecided.endswith(f" Whether a random direction, trained alike, restores as much is undecided: {refuses}")
    formula = judged_beside_controls({"formula": ("does not hold", 0.7)}, repair="aird")
    assert " A random direction, by the same formula, restores about as much: formula refuses 89%" in formula


@pytest.mark.parametrize(("verdict", "told"), [("holds", "restores less"), ("undecided", "is undecided")])
def test_one_random_direction_among_several_says_nothing_of_the_direction(verdict: str, told: str) -> None:
    tie, other = ("does not hold", 0.7), (verdict, 0.1)
    refuses = "refuses 89% (66 to 73%), and 8% of harmless prompts."
    mixed = judged_beside_controls({"control": tie, "second": other})
    assert f" A random direction, trained alike, restores about as much: control {refuses}" in mixed
    assert mixed.endswith(f"{told}: second {refuses}") and "adds nothing" not in mixed
    both = judged_beside_controls({"control": tie, "second": tie})
    assert both.endswith(" So the direction adds nothing to this repair.")


def test_a_free_column_is_a_control_of_its_own_kind() -> None:
    learnt = "column that is learnt as well, trained alike,"
    free = "free refuses 89% (66 to 73%), and 8% of harmless prompts."
    alone = judged_beside_controls({"free": ("does not hold", 0.7)})
    # It may have become the direction, so that alone does not make the direction idle.
    assert alone.endswith(f" A {learnt} restores about as much: {free}")
    both = judged_beside_controls({"free": ("does not hold", 0.7), "control": ("does not hold", 0.01)})
    assert f" A {learnt} restores about as much: {free} A random direction, trained alike, restores more: " in both
    assert both.endswith(" So the direction adds nothing to this repair.")
    better = judged_beside_controls({"free": ("undecided", 0.2), "control": ("holds", 0.001)})
    assert better.endswith(f" Whether a {learnt} restores as much is undecided: {free}")


def test_both_losses_are_named_with_their_intervals() -> None:
    rose = {"difference": 0.24, "lost": 0, "gained": 24, "p_value": 1e-7}
    both = sentences(plain__original__over_refusal=rose)[1]
    assert both.startswith(
        "Wanda pruning of 50% (pruned) took refusal from 95% to 50% (46 to 53%, p < 0.001), and raised that of harmless "
        "prompts from 5% to 5% (3 to 10%, p < 0.001); aird brings a part of it back: 70% (66 to 73%, p < 0.001), and "
        "answers do not come back: 8% (6 to 13%, not significant, p = 0.25) of harmless prompts are refused, and 5% by "
        "the original (not significant, p = 0.38)."
    )
    back = {"difference": -0.2, "lost": 20, "gained": 0, "p_value": 1e-5}
    repaired = sentences(plain__original__over_refusal=rose, aird__plain__over_refusal=back)[1]
    assert (
        "and answers come back: 8% (6 to 13%, p < 0.001) of harmless prompts are refused, and 5% by the original"
        in repaired
    )
    kept = {"difference": 0.01, "lost": 3, "gained": 5, "p_value": 0.7}
    alone = sentences(plain__original__refusal=kept, plain__original__over_refusal=rose)[1]
    assert (
        "as the original does (95%; not significant, p = 0.7); it refuses 5% (3 to 10%, p < 0.001) of harmless "
        "prompts instead of the original's 5%; with aird it refuses" in alone
    )
    fewer = {"difference": -0.04, "lost": 9, "gained": 0, "p_value": 0.004}
    assert ", and lowered that of harmless prompts from 5% to 5%" in sentences(plain__original__over_refusal=fewer)[1]


def test_nothing_is_told_of_a_control_that_restores_less_or_where_nothing_came_back() -> None:
    for sentence in (
        judged_beside_controls({"control": ("holds", 0.001)}),
        judged_beside_controls({"control": ("does not hold", 0.7)}, gain=0.5),
    ):
        assert "learnt" in sentence and "random direction" not in sentence


def test_a_matched_control_differs_in_direction_seed_and_compressions_alone() -> None:
    patches = {
        "repair": {"method": "calibrate", "direction": "original", "seed": 0, "compressions": None, "epochs": 8},
        "first": {"method": "calibrate", "direction": "random", "seed": 0, "compressions": ["a"], "epochs": 8},
        "second": {"method": "calibrate", "direction": "random", "seed": 1, "compressions": None, "epochs": 8},
        "shorter": {"method": "calibrate", "direction": "random", "seed": 0, "compressions": None, "epochs": 2},
        "own": {"method": "calibrate", "direction": "own", "seed": 0, "compressions": None, "epochs": 2},
        "free": {"method": "calibrate", "direction": "free", "seed": 3, "compressions": None, "epochs": 8},
        "untrained": {"method": "scale", "direction": "random", "seed": 0, "compressions": None, "alpha": 1.0},
        "strong": {"method": "scale", "direction": "original", "seed": 0, "compressions": None, "alpha": 2.0},
        "lora": {"method": "lora", "seed": 0, "compressions": None, "epochs": 8},
    }
    assert matched_controls(patches) == {"repair": ["first", "second", "free"], "own": ["shorter"], "strong": []}


def test_the_repairs_have_three_matched_controls_where_they_are_compared() -> None:
    settings: dict[str, Any] = {}
    for name in ("embedded", "repairs"):
        update_config(settings, yaml.safe_load((ROOT / f"config/{name}.yaml").read_text(encoding="utf-8")))
    configuration = load_configuration(settings)
    controls = matched_controls(configuration.model_dump()["patches"])
    assert controls["aird-calibrated"][-1] == "calibrated-free"
    for patch, count in (("aird", 3), ("aird-calibrated", 4)):
        assert len(controls[patch]) == count, patch
        for control in controls[patch]:
            compressions = {compression for _, compression, own in configuration.cells() if own == control}
            # The embedded grid's own control is on its third compression too.
            more = {"magnitude-30"} if control == "random-control" else set()
            assert compressions == {"wanda-50", "w4a16"} | more, control


def test_equal_over_refusal_is_said_in_few_words() -> None:
    sentence = sentences(aird__original__over_refusal={"lost": 0, "gained": 0, "p_value": 1.0})[1]
    assert sentence.endswith(", and harmless prompts are refused 8% of the time, as by the original.")


def test_several_models_are_named() -> None:
    summary, paired, _ = tables()
    summary = pandas.concat([summary, summary.assign(model="other")])
    paired = pandas.concat([paired, paired.assign(model="other")])
    of_first, _, of_other, _ = headlines(summary, paired, claims(), CONFIGURATION)
    assert [sentence.split(" The")[0] for sentence in (of_first, of_other)] == [
        "m, suite safety:",
        "other, suite safety:",
    ]


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.944, "94%"), (0.025, "3%"), (0.075, "8%"), (0.0, "0%"), (0.004, "0.4%"), (1.0, "100%"), (0.996, "99.6%")],
)
def test_whole_per_cent(rate: float, text: str) -> None:
    assert whole_percent(rate) == text


CALIBRATED = {"calibration": {"prompt_set": "harmless"}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"recipe": "gptq", **CALIBRATED}, "4-bit GPTQ (x)"),
        ({"recipe": "given", "sources": {"m": {"path": "folder"}}}, "a ready-made checkpoint (x)"),
        ({"recipe": "magnitude", "sparsity": 0.3}, "magnitude pruning of 30% (x)"),
        ({"recipe": "sparsegpt", "pattern": "2:4", **CALIBRATED}, "SparseGPT pruning of 50% in the pattern 2:4 (x)"),
        ({"recipe": "round_to_nearest", "weight_bits": 4}, "4-bit rounding (x)"),
        ({"recipe": "bitsandbytes", "variant": "nf4"}, "bitsandbytes nf4 (x)"),
        ({"recipe": "fp8"}, "rounding to FP8 (x)"),
        (
            {"recipe": "wanda", "sparsity": 0.5, "key_value_cache_dtype": "fp8", **CALIBRATED},
            "Wanda pruning of 50% with a key/value cache in fp8 (x)",
        ),
        (None, "x"),
    ],
)
def test_compressions_in_words(settings: dict[str, Any] | None, words: str) -> None:
    assert compression_in_words("x", settings) == words


def test_every_method_has_words() -> None:
    for name in METHODS.names():
        assert "x" in patch_in_words("x", {"direction": "original", "method": name})
    assert patch_in_words("x", CONFIGURATION["patches"]["control"]) == (
        "the calibrated patch along a random direction (x)"
    )
    free = {**CONFIGURATION["patches"]["control"], "direction": "free"}
    assert patch_in_words("x", free) == "the calibrated patch with learnt columns (x)"


def test_the_details_of_a_damaged_and_repaired_checkpoint() -> None:
    about, pruned, aird, _ = details(*tables())
    assert about == "m, suite safety"
    assert "pruned changed refusal by -45.0 points (p = 1e-20), to 50.0%" in pruned
    # Not the cosine of all prompts (0.6): both models share their noise. And a direction that turned may lie in the null.
    assert "cosine 0.55 (0.50 to 0.61) with the original's at the same site, corrected for noise, norm" in pruned
    assert "null" not in pruned
    assert "source site (9, -1)" in pruned and "over-refusal" not in pruned
    summary, paired, directions = tables()
    harmless = (paired.patch == "plain") & (paired.rate == "over_refusal")
    paired.loc[harmless, ["difference", "p_value"]] = [0.24, 1e-7]
    _, pruned, *_ = details(summary, paired, directions)
    assert ", to 50.0%, and changed over-refusal by +24.0 points (p = 1e-07), to 5.0%; its direction" in pruned
    assert "aird: +20.0 points of refusal, p = 1e-09; over-refusal +3.0 points, perplexity x 1.050" in aird


def test_the_details_of_what_changes_no_weight() -> None:
    summary, paired, directions = tables()
    _, pruned, _, *_ = details(summary, paired, directions[directions.compression != "pruned"])
    assert pruned.endswith("to 50.0%; no weight changed, so its direction is the original's.")


def test_the_details_of_what_is_not_measurable() -> None:
    summary, paired, directions = tables()
    paired["p_value"] = 0.4
    directions = directions.assign(layer=12, cosine_same_site_corrected=math.nan)
    _, pruned, aird, _ = details(summary.assign(utility=math.nan), paired, directions)
    assert "its direction has an undefined cosine with" in pruned
    assert "did not change refusal measurably" in pruned and "the same source site" in pruned
    assert "(no measurable change)" in aird and aird.endswith("perplexity x 1.050.")


@pytest.mark.parametrize(
    ("cosmic", "end"),
    [
        ((8, -2, False), "; COSMIC chooses (8, -2)"),
        ((9.0, -1.0, True), "; COSMIC agrees"),
        ((math.nan, math.nan, math.nan), ""),
    ],
)
def test_every_site_has_a_second_opinion(cosmic: tuple[float, float, Any], end: str) -> None:
    summary, paired, directions = tables()
    directions[["cosmic_layer", "cosmic_position", "cosmic_agrees"]] = [list(cosmic)]
    site = list(details(summary, paired, directions))[-1]
    assert site == f"  pruned: site (9, -1), by relaxed_kl; resampled prompts choose it in 62.0% of cases{end}."
    # Where COSMIC chose, nothing is resampled.
    site = list(details(summary, paired, directions.assign(resampled_same_site=math.nan)))[-1]
    assert site == f"  pruned: site (9, -1), by relaxed_kl{end}."


def test_every_claim_has_its_verdict_and_what_would_decide_it() -> None:
    assert list(verdict_sentences(claims())) == [
        "C2, quantisation keeps direction and source, pruning moves both: UNDECIDED (pruned: undecided). Even 10,000 "
        "prompts would not decide it: a model's own site is not stable.",
        "C3, more refusal is lost where the direction moves further: UNDECIDED (pruned: holds). About 4 compressions "
        "would decide it.",
        "C4, aird, refusal is repaired at no cost: DOES NOT HOLD (pruned: does not hold).",
    ]
    both = claims() + claims("other")
    abouts = ["m", "m, safety", "m, safety", "other", "other, safety", "other, safety"]
    assert [sentence.split(": ")[0] for sentence in verdict_sentences(both)] == abouts


def test_the_summary_of_a_run_ends_in_the_same_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_tables(tmp_path / "tables", (["tiny"], ["wanda-50", "w4a16"], ["aird", "aird-calibrated"]))
    monkeypatch.setenv("COLUMNS", "10000")
    printed = run_script("print_summary", configuration="config.yaml", tables=tmp_path / "tables", report="report.html")
    lines = printed.splitlines()
    summary, paired = (read_table(path) for name in ("summary", "paired") for path in paths if path.stem == name)
    configuration = load_configuration(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))
    claimed = read_statements(tmp_path / "tables/claims.csv")
    expected = list(headlines(summary, paired, claimed, configuration.model_dump()))
    assert len(expected) == 5 and [line for line in lines if line in expected] == expected
    assert "4-bit rounding (w4a16)" in expected[3] and "the calibrated patch (aird-calibrated)" in expected[3]
    assert set(verdict_sentences(claimed)) <= set(lines)
    assert "Report:      report.html" in lines


def test_a_compression_may_be_named_like_a_number(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", (["7"], ["50"], ["aird"]))
    printed = run_script("print_summary", configuration="config.yaml", tables=tmp_path / "tables", report="report.html")
    assert "7, suite safety" in printed and "With 50 the model refuses" in " ".join(printed.split())
