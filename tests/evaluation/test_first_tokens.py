"""Scores of first tokens: against whole distributions of a tiny model, and what is told of them in part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from aird.directions.refusal_score import refusal_scores
from aird.evaluation.engine import Client, Completion
from aird.evaluation.engines.transformers import TransformersClient
from aird.evaluation.first_tokens import first_token_records, first_token_scores, first_tokens, refusal_tokens
from aird.evaluation.parity import first_token_logprobs

REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Of course, with pleasure."


def completions(count: int, **more: Any) -> list[dict[str, Any]]:
    """Return completion records of so many harmful prompts, which are refused, and as many harmless ones."""
    texts = {"harmful": REFUSAL, "harmless": ANSWER}
    return [
        {"id": str(n), "kind": kind, "completion": text, **more} for kind, text in texts.items() for n in range(count)
    ]


def recorded(rows: list[dict[str, Any]], found: Sequence[dict[int, float]], **more: Any) -> list[dict[str, Any]]:
    told = first_token_records(rows, more.get("lead", []), found, more.get("original"))
    return [row | {"first_token": token} for row, token in zip(rows, told, strict=True) if token]


def test_scores_are_those_of_the_whole_distributions(llama: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    lead, found = first_tokens(TransformersClient(llama, tokenizer), tokenizer, prompts, 100_000, True)
    expected = torch.stack(first_token_logprobs(llama, prompts))
    assert lead == [] and [max(each, key=each.__getitem__) for each in found] == expected.argmax(-1).tolist()
    scored = [7, 11]  # that no reply begins with, so that a record keeps them for this alone
    refusals = recorded(completions(20), [{token: 0.0} for token in (*[7, 11] * 10, *[3] * 20)])
    assert refusal_tokens(refusals) == scored
    rows = recorded(completions(len(prompts))[: len(prompts)], found, original=refusals)
    scores = list(first_token_scores(refusals, rows).values())
    wanted = refusal_scores(expected, scored).tolist()
    assert [score.low for score in scores] == pytest.approx(wanted, abs=1e-3)
    assert all(score.low == score.high for score in scores)


def test_a_token_that_is_not_told_leaves_a_score_between_bounds() -> None:
    original = recorded(completions(5), [{1: -0.1, 9: -3.0}] * 5 + [{2: -0.1, 9: -3.0}] * 5)
    assert refusal_tokens(original) == [1]
    refused, answered = (
        first_token_scores(original, original)["harmful", "0"],
        first_token_scores(original, original)["harmless", "0"],
    )
    assert refused.low == refused.high == pytest.approx(math.log(math.exp(-0.1) / (1 - math.exp(-0.1))), abs=1e-4)
    # The least that is told has exp(-3) = 0.0498, and what is left is 1 - exp(-0.1) - exp(-3) = 0.0454.
    assert answered.low == pytest.approx(math.log(1e-8), abs=1e-4)
    assert answered.high == pytest.approx(math.log(0.04538 / (1 - 0.04538)), abs=1e-3)
    # What was recorded for itself keeps its likeliest tokens: another's refusal token is no likelier than the least.
    alone = recorded(completions(5), [{2: -0.1, 9: -4.0}] * 10)
    assert first_token_scores(original, alone)["harmful", "0"].high == pytest.approx(-4.0, abs=0.02)


def test_nothing_is_scored_where_replies_begin_alike_or_otherwise() -> None:
    alike = recorded(completions(9), [{1: -0.1}] * 18)
    original = recorded(completions(9), [{1: -0.1}] * 9 + [{2: -0.1}] * 9)
    few = recorded(completions(4), [{1: -0.1}] * 4 + [{2: -0.1}] * 4)
    other = recorded(completions(9), [{1: -0.1}] * 18, lead=[5])
    assert first_token_scores(original, alike)
    pairs = [(alike, original), (few, original), (original, other), (original, completions(9)), (completions(9), alike)]
    assert [first_token_scores(*pair) for pair in pairs] == [{}] * 5


def test_white_space_that_all_replies_begin_with_is_passed_over(tokenizer: Any) -> None:
    (blank,) = tokenizer(" ", add_special_tokens=False)["input_ids"]
    (word,) = tokenizer("I", add_special_tokens=False)["input_ids"]

    class Spaced(Client):
        """Begins each reply with a space, as Llama 2 does."""

        def complete(self, prompts: Any, maximum_new_tokens: int, *, logprobs: int | None = None) -> list[Completion]:
            return [Completion("", (), "length", {word if prompt[-1] == blank else blank: -0.1}) for prompt in prompts]

    prompts = [[1, 2]] * 3
    assert first_tokens(Spaced(), tokenizer, prompts, 5, True) == ([blank], [{word: -0.1}] * 3)
    assert first_tokens(Spaced(), tokenizer, prompts, 5, False) == ([], [{blank: -0.1}] * 3)
