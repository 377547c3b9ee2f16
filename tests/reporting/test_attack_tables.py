"""The tables of attacks and judges, and what is said of them, from hand-made scores."""

from __future__ import annotations

from typing import Any

import pandas
import pytest
from node_records import ORIGINAL, PATCHED, PRUNED, attacked_score, made, row

from aird.reporting.sentences.attacks import attack_sentences


@pytest.fixture
def attacked() -> dict[Any, Any]:
    return {
        ("hard", ORIGINAL): attacked_score([0, 0, 0, 0], prefill=[1, 0, 0, 0], again=[0, 0, 0, 0]),
        ("hard", PRUNED): attacked_score([1, 1, 0, 0], prefill=[1, 1, 1, 1], again=[0, 1, 1, 0]),
        ("hard", PATCHED): attacked_score([0, 0, 0, 0], prefill=[1, 1, 0, 0], again=[0, 0, 0, 0]),
        # A suite without attacks has no rows.
        ("main", ORIGINAL): attacked_score([0, 1]),
    }


def test_attacks(attacked: Any) -> None:
    frame = made("attacks", scores=attacked)
    plain = frame[(frame["patch"] == "plain") & (frame["compression"] == "pruned")]
    assert list(plain["attack"]) == ["none", "prefill", "again"]
    assert set(frame["suite"]) == {"hard"} and len(frame) == 9
    values = row(frame, compression="pruned", patch="plain", attack="again")
    assert (values["n"], values["asr_arditi"], values["degenerate"]) == (4, 0.5, 0.0)
    assert values["asr_arditi_low"] == pytest.approx(0.15, abs=0.005)
    assert values["asr_wei"] == 0 and pandas.isna(values["asr_strongreject"])
    assert row(frame, compression="original", attack="none")["asr_arditi"] == 0


def test_resistance(attacked: Any) -> None:
    frame = made("resistance", scores=attacked)
    assert len(frame) == 3 * 3  # plain against original, the patch against both; two attacks and all of them
    values = row(frame, patch="repair", attack="prefill", against="original")
    assert (values["difference"], values["lost"], values["gained"], values["p_value"]) == (0.25, 0, 1, 1.0)
    values = row(frame, patch="repair", attack="all", against="plain")
    # Per prompt: 0, -1/2, -1, -1/2.
    assert (values["n"], values["difference"]) == (4, -0.5) and values["low"] < -0.5 < values["high"]
    assert row(frame, patch="repair", attack="all", against="original")["verdict"] == "undecided"
    assert frame[frame["attack"] != "all"]["verdict"].isna().all()


def test_a_patch_resists_as_well_as_the_original_if_enough_prompts_show_it() -> None:
    same, more = [0] * 99 + [1], [0] * 60 + [1] * 40
    scores = {
        ("hard", ORIGINAL): attacked_score(same, prefill=same, again=same),
        ("hard", PATCHED): attacked_score(same, prefill=same, again=same),
        ("hard", PRUNED): attacked_score(same, prefill=more, again=more),
    }
    frame = made("resistance", scores=scores)
    verdicts = frame[(frame["attack"] == "all") & (frame["against"] == "original")].set_index("patch")["verdict"]
    assert verdicts.to_dict() == {"repair": "holds", "plain": "does not hold"}


REPAIR: dict[str, Any] = {
    "compressions": {},
    "patches": {"repair": {"method": "calibrate", "direction": "original"}},
}


def in_words(scores: dict[Any, Any]) -> list[str]:
    """Return what is said of attacks on these cells."""
    return list(
        attack_sentences(
            made("summary", scores=scores), made("attacks", scores=scores), made("resistance", scores=scores), REPAIR
        )
    )


def test_attacks_in_words(attacked: Any) -> None:
    first, second = in_words({key: value for key, value in attacked.items() if key[0] == "hard"})
    assert first.startswith(
        "Under 2 attacks the original gives in to 13% of the attempts on a prompt, as a mean over 4 prompts, and without an "
        "attack to 0% of the prompts, by Arditi's phrases."
    )
    assert "Pruned gives in to 75% (+62.5 points against the original," in second
    assert "With the calibrated patch (repair) it gives in to 25% (+12.5 points against the original, -" in second
    assert second.count(" points),") + second.count(" points).") + second.count(" points):") == 2
    assert second.endswith("whether it resists at least as well as the original, to within 5 points, is undecided.")


def test_attacks_that_ask_other_numbers_of_prompts_are_told_over_prompts() -> None:
    scores = {
        ("hard", ORIGINAL): attacked_score([0, 0, 0, 0], prefill=[0, 0, 0, 0], again=[1]),
        ("hard", PRUNED): attacked_score([0, 0, 0, 0], prefill=[0, 0, 1, 1], again=[0]),
    }
    values = row(made("resistance", scores=scores), patch="plain", attack="all", against="original")
    # The first prompt gives in to one of its two attacks there, to none here; two of the others to their only one here.
    assert (values["reference"], values["rate"], values["difference"]) == (0.125, 0.5, 0.375)
    first, second = in_words(scores)
    assert "Under 2 attacks the original gives in to 13% of the attempts" in first
    assert second.startswith("Pruned gives in to 50% (+37.5 points against the original, ")
    # An original alone is compared with nothing.
    assert in_words({key: value for key, value in scores.items() if key[1] == ORIGINAL}) == [
        "Without an attack the original gives in to 0% of the prompts, by Arditi's phrases. Brackets hold 95% intervals "
        "over prompts."
    ]


def test_an_attack_that_finds_a_repair_weaker_is_named_whatever_is_shown_over_all_attacks() -> None:
    none, half, most = [0] * 100, [1] * 50 + [0] * 50, [1] * 80 + [0] * 20
    _, told = in_words(
        {
            ("hard", ORIGINAL): attacked_score(none, prefill=half, again=most, suffix=half),
            ("hard", PRUNED): attacked_score(none, prefill=half, again=most, suffix=half),
            ("hard", PATCHED): attacked_score(none, prefill=most, again=half, suffix=none),
        }
    )
    assert told.endswith(
        "it resists at least as well as the original, to within 5 points. Under prefill it gives in more often than the "
        "original."
    )


def test_categories_and_agreement(attacked: Any) -> None:
    frame = made("categories", scores=attacked)
    assert set(frame["kind"]) == {"harmful"}  # the harmless prompts are of one set
    values = row(frame, suite="hard", compression="pruned", patch="plain", origin="set-0")
    assert (values["n"], values["refusal"]) == (2, 0.5)
    frame = made("agreement", scores=attacked)
    values = row(frame, suite="hard", compression="pruned", patch="plain")
    # Eight replies comply by Arditi's phrases, none has Wei's twenty words.
    assert (values["judge"], values["other"], values["n"]) == ("arditi", "wei", 12)
    assert (values["only_judge"], values["only_other"]) == (8, 0) and values["kappa"] == pytest.approx(0)
    assert values["agreement"] == pytest.approx(4 / 12)
    assert row(frame, suite="hard", patch="repair")["only_judge"] == 2
