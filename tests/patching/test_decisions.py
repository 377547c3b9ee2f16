"""Decisions as what a calibration learns, and rows in whitened inputs: against their formulas, and end to end."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from test_calibration import INSTRUCTIONS, SIZES, learnt, patched
from test_fitting import damaged, damaged_copy, modules

from aird.patching.calibration import decision_replies
from aird.patching.divergence import DECISION, divergence, make_batches
from aird.patching.edits import Edit
from aird.patching.methods.calibrate import Calibrate
from aird.patching.replies import ReplySet, record_replies, refusal_tokens


@pytest.fixture
def replies(model: Any, tokenizer: Any) -> ReplySet:
    return record_replies(model, tokenizer, INSTRUCTIONS, SIZES)["train_harmful"]


def test_what_decisions_are_learnt_from(replies: ReplySet) -> None:
    token = int(replies.top_tokens[0, 0, 0])
    original = dataclasses.replace(replies, refused=[True, False, False, False])
    own = dataclasses.replace(replies, replies=[[n] for n in range(4)], refused=[False, True, False, False])
    decided = replies.beginning([token])
    assert decided[0] == pytest.approx(replies.top_log_probabilities[0, 0, 0].exp().item())
    first, second = decision_replies(original, own, [token])
    assert first.replies == original.replies[:2] and second.replies == own.replies[2:]
    assert first.decisions == decided[:2] and second.decisions == decided[2:]
    (alone,) = decision_replies(dataclasses.replace(original, refused=[True] * 4), own, [token])
    assert alone.decisions == decided


def test_the_loss_of_a_decision_is_its_formula(model: Any, replies: ReplySet) -> None:
    """Prompt by prompt, on whole vocabularies: the decision's KL, that among other tokens, and that of later tokens."""
    compressed = damaged(copy.deepcopy(model))
    tokens = sorted({int(token) for token in replies.top_tokens[:, 0, 0]})[:2]
    part = dataclasses.replace(replies, decisions=[0.9, 0.5, 0.2, 0.001])
    batches = make_batches(compressed, [part], 2, None)
    with torch.no_grad():
        found = sum(divergence(compressed, batch, 2, [], tokens).item() * len(batch.places) for batch in batches)
    expected = 0.0
    for prompt, reply, wanted in zip(part.prompts, part.replies, part.decisions or (), strict=True):
        ids = torch.tensor([prompt + reply])
        with torch.no_grad():
            said, now = (
                each(input_ids=ids).logits[0, -len(reply) - 1 :].double().log_softmax(-1)
                for each in (model, compressed)
            )
        chance = now[0, tokens].exp().sum()
        decided = torch.tensor([wanted, 1 - wanted]).double()
        expected += DECISION * (decided * (decided / torch.stack([chance, 1 - chance])).log()).sum().item()
        others = torch.ones(said.shape[-1], dtype=torch.bool)
        others[tokens] = False
        before, after = said[0, others].log_softmax(-1), now[0, others].log_softmax(-1)
        expected += (1 - wanted) * (before.exp() * (before - after)).sum().item()
        expected += (said[1:].exp() * (said[1:] - now[1:])).sum().item()
    assert found == pytest.approx(expected, rel=0.1)


def test_a_learnt_decision_comes_nearer(model: Any, replies: ReplySet) -> None:
    token = int(replies.top_tokens[0, 0, 0])
    part = dataclasses.replace(replies, decisions=[0.9] * 4)
    edits = learnt(
        model, modules(model, [2, 3]), 2, [part], epochs=40, learning_rate=0.2, refusal_tokens=(token,), whitening=0.01
    )

    def loss(changed: list[Edit]) -> torch.Tensor:
        with torch.no_grad():
            losses = [divergence(model, batch, 2, changed, [token]) for batch in make_batches(model, [part], 2, None)]
        return torch.stack(losses).mean()

    assert loss(edits) < 0.95 * loss([])  # along one random direction much cannot be said


def beginning_with(tokens: list[int], chances: list[float], refused: list[bool]) -> ReplySet:
    """Return replies to prompts that begin with one token each, so likely; the second likeliest is token 9."""
    first = torch.tensor([[token, 9] for token in tokens])[:, None]
    known = torch.tensor([[chance, 1 - chance] for chance in chances]).log()[:, None]
    return ReplySet([[1]] * len(tokens), [[2]] * len(tokens), first, known, refused)


@pytest.mark.parametrize(
    ("harmful", "harmless", "found"),
    [
        # Refusals begin with 3 or 4, answers with 5.
        (([3] * 5 + [4] * 3, [True] * 8), ([5] * 8, [False] * 8), (3, 4)),
        # Of 11 refusals three begin as answers do: the area is 1 - 3 / 22. Of 9 it is one: 1 - 1 / 18.
        (([3] * 8, [True] * 8), ([5] * 8, [True] * 3 + [False] * 5), ()),
        (([3] * 8, [True] * 8), ([5] * 8, [True] + [False] * 7), (3,)),
        # All replies begin alike.
        (([3] * 8, [True] * 8), ([3] * 8, [False] * 8), ()),
        # Fewer than five refusals, or fewer than five answers.
        (([3] * 8, [True] * 4 + [False] * 4), ([5] * 8, [False] * 8), ()),
        (([3] * 8, [True] * 8), ([5] * 4, [False] * 4), ()),
    ],
)
def test_which_first_tokens_tell_what_a_model_refuses(
    harmful: tuple[list[int], list[bool]], harmless: tuple[list[int], list[bool]], found: tuple[int, ...]
) -> None:
    sets = [beginning_with(tokens, [0.9] * len(tokens), refused) for tokens, refused in (harmful, harmless)]
    assert refusal_tokens(*sets) == found


def test_whitening_that_drowns_the_covariance_changes_nothing(model: Any, replies: ReplySet) -> None:
    """Then P is a multiple of the identity, and Adam's relative steps are those of plain rows."""
    compressed = damaged(copy.deepcopy(model))
    how = {"epochs": 3, "learning_rate": 0.1}
    plain, drowned, whitened = (
        learnt(compressed, modules(model, [3]), 3, [replies], **how, whitening=each) for each in (None, 1e6, 0.01)
    )
    for one, other, third in zip(plain, drowned, whitened, strict=True):
        torch.testing.assert_close(one.down, other.down, rtol=1e-2, atol=1e-3 * one.down.abs().max().item())
        assert (one.down - third.down).norm() > 0.1 * one.down.norm()


@pytest.mark.parametrize("told", [True, False])
def test_a_patch_learns_decisions_where_first_tokens_tell_them(
    told: bool, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_refuse: None
) -> None:
    """A model of random weights begins all replies alike, so which tokens refusals begin with is said here."""

    def tokens(harmful: ReplySet, _: ReplySet) -> tuple[int, ...]:
        return tuple({int(token) for token in harmful.top_tokens[:, 0, 0]}) if told else ()

    monkeypatch.setattr("aird.patching.replies.refusal_tokens", tokens)
    compressed = damaged_copy(original, tmp_path / "compressed")
    settings = Calibrate(learns="decisions", whitening=0.01, epochs=1, strengths=[1.0], significance=1, kl_budget=100.0)
    record = patched(settings, original, tmp_path, compressed, sizes=SIZES.sizes)
    assert record["calibration"]["learns"] == ("decisions" if told else "refusals")
    assert record["calibration"]["tried"] and any(edit["relative_change"] > 0 for edit in record["edits"])
