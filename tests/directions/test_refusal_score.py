"""The refusal score by hand, and the tokens that it counts."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch

from aird.directions.refusal_score import refusal_scores
from aird.directions.refusal_tokens import derive_refusal_tokens


class Words:
    """A tokenizer of three words; a token's text is its id between brackets."""

    ids = {"I": [11], "Sorry": [12, 13], "As": [11]}  # noqa: RUF012

    def __call__(self, word: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": self.ids[word]}

    def decode(self, ids: list[int]) -> str:
        return f"<{ids[0]}>"


def test_refusal_score_by_hand() -> None:
    # Probabilities 1/8, 2/8, 4/8, 1/8.
    logits = torch.tensor([1.0, 2.0, 4.0, 1.0]).log()
    assert refusal_scores(logits, [1]).item() == pytest.approx(math.log(0.25 / 0.75), abs=1e-6)
    assert refusal_scores(logits, [1, 2]).item() == pytest.approx(math.log(0.75 / 0.25), abs=1e-6)
    assert refusal_scores(logits, [0, 1, 3]).item() == pytest.approx(0, abs=1e-6)


def test_epsilon_bounds_the_score() -> None:
    certain = torch.tensor([1000.0, 0.0])
    assert refusal_scores(certain, [0]).item() == pytest.approx(math.log(1 + 1e-8) - math.log(1e-8))
    assert refusal_scores(certain, [1]).item() == pytest.approx(math.log(1e-8) - math.log(1 + 1e-8))


def test_leading_axes_are_kept_and_the_type_is_float64() -> None:
    scores = refusal_scores(torch.zeros(2, 3, 8, dtype=torch.bfloat16), [5, 6])
    assert scores.shape == (2, 3)
    assert scores.dtype == torch.float64
    assert scores[1, 2].item() == pytest.approx(math.log(2 / 6), abs=1e-6)


def derive(
    harmful: list[list[int]], refused: list[bool], harmless: list[list[int]], harmless_refused: list[bool] | None = None
) -> dict[str, Any]:
    return derive_refusal_tokens(Words(), harmful, refused, harmless, harmless_refused or [False] * len(harmless))


def test_tokens_come_from_the_models_own_refusals() -> None:
    harmful = [[40, 1]] * 12 + [[50, 2]] * 7 + [[60]] + [[70]] * 5
    refused = [True] * 20 + [False] * 5
    record = derive(harmful, refused, [[70, 9]] * 9 + [[50]])
    # Shares of the 20 refusals: 40 has 0.6, 50 has 0.35, 60 has 0.05; 50 begins 0.1 of the answers.
    assert record["tokens"] == [40, 50, 60]
    assert record["derived"] is True
    assert record["refusals"] == 20
    assert record["shares"] == [(40, "<40>", 0.6, 0.0), (50, "<50>", 0.35, 0.1), (60, "<60>", 0.05, 0.0)]


def test_a_token_of_answers_is_no_refusal_token() -> None:
    record = derive([[40]] * 6 + [[50]] * 4, [True] * 10, [[50]] * 4 + [[70]] * 6)
    # 50 begins 0.4 of refusals and 0.4 of answers.
    assert record["tokens"] == [40]
    # Nor is one that begins refusals hardly more often than answers.
    assert derive([[40]] * 5 + [[50]] * 5, [True] * 10, [[50]] * 4 + [[70]] * 6)["tokens"] == [40]


def test_a_rare_token_is_dropped() -> None:
    record = derive([[40]] * 24 + [[60]], [True] * 25, [[70]])
    assert record["tokens"] == [40]  # 1 of 25 is below 5%


def test_too_few_refusals_fall_back_to_words(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        record = derive([[40]] * 4 + [[50]] * 6, [True] * 4 + [False] * 6, [[70]])
    assert record["tokens"] == [11, 12]
    assert record["derived"] is False
    assert record["refusals"] == 4
    assert "only 4 refusals" in caplog.text


def test_refusals_that_begin_like_answers_fall_back_by_their_own_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        record = derive([[40]] * 9 + [[70]], [True] * 9 + [False], [[40]] * 6 + [[70]] * 4)
    assert (record["tokens"], record["derived"], record["refusals"]) == ([11, 12], False, 9)
    assert record["shares"] == [(40, "<40>", 1.0, 0.6)]
    assert "9 refusals were seen, but no token begins them clearly more often than answers" in caplog.text


def test_tokens_stand_behind_what_all_replies_begin_with() -> None:
    """Llama 2 begins each of its replies with a space of its own."""
    harmful = [[29, 30, 40]] * 12 + [[29, 30, 50]] * 8 + [[29, 30, 70]] * 5
    refused = [True] * 20 + [False] * 5
    record = derive(harmful, refused, [[29, 30, 70]] * 19 + [[80]])
    assert (record["lead"], record["tokens"], record["derived"]) == ([29, 30], [40, 50], True)
    assert record["shares"] == [(40, "<40>", 0.6, 0.0), (50, "<50>", 0.4, 0.0)]
    # One more that begins otherwise, and no lead is shared by nearly all.
    record = derive(harmful, refused, [[29, 30, 70]] * 18 + [[80]] * 2)
    assert "lead" not in record and record["derived"] is False


def test_how_a_model_refuses_everything_is_no_lead() -> None:
    harmful, harmless = [[40, 41, 50]] * 20, [[40, 41, 60]] * 20
    record = derive(harmful, [True] * 20, harmless, [True] * 20)
    assert "lead" not in record and record["tokens"] == [11, 12]
    # It would be one if these were answers.
    assert derive(harmful, [True] * 20, harmless)["lead"] == [40, 41]


def test_empty_completions_are_no_refusals() -> None:
    record = derive([[]] * 8 + [[40]] * 5, [True] * 13, [[], [70]])
    assert (record["tokens"], record["refusals"]) == ([40], 5)


def test_no_refusal_and_no_answer() -> None:
    assert derive([], [], [])["tokens"] == [11, 12]
