"""What compression took, on validation prompts, and the choice of a strength by running a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from patches import unit_vector
from test_calibration import INSTRUCTIONS, RECORDS, SIZES
from test_fitting import modules

from aird.inference.generation import generate
from aird.patching.adapters import load_adapter
from aird.patching.divergence import make_batches, mean_divergence
from aird.patching.edited import edited
from aird.patching.edits import Edit
from aird.patching.method import PatchInputs
from aird.patching.methods import parse_patch
from aird.patching.patch_files import make_patch
from aird.patching.replies import ReplySet, record_replies
from aird.patching.validation import Validation, choose_on_validation
from aird.settings.patches import ChoiceSettings

REFUSES, ANSWERS = True, False
UNIT = unit_vector()


def replies_of(flags: list[bool]) -> ReplySet:
    """Return replies of which only the flags are looked at."""
    empty = torch.zeros(len(flags), 2, 4)
    return ReplySet([[1]] * len(flags), [[2]] * len(flags), empty, empty, flags)


@pytest.mark.parametrize(
    ("harmful", "harmless", "significance", "repair"),
    [
        # Of eight prompts each the original refuses all harmful and no harmless ones.
        (8, 0, 0.2, False),
        (5, 0, 0.2, False),  # p = 0.25: 3 of 8 may be chance
        (4, 0, 0.2, True),  # p = 0.125
        (4, 0, 0.1, False),
        # Answers that became refusals are a loss as well, with all refusals in place.
        (8, 3, 0.2, False),
        (8, 4, 0.2, True),
        (8, 4, 0.1, False),
        (4, 4, 0.2, True),
        (8, 0, 1, True),
    ],
)
def test_either_loss_asks_for_a_repair(harmful: int, harmless: int, significance: float, repair: bool) -> None:
    own = [index < harmful for index in range(8)]
    own_harmless = replies_of([index < harmless for index in range(8)])
    validation = Validation(replies_of([REFUSES] * 8), replies_of([ANSWERS] * 8), own_harmless, own, 4)
    assert validation.needs_repair(significance) is repair
    assert (validation.losses["refusals"].gained, validation.losses["answers"].gained) == (8 - harmful, harmless)


def test_what_was_gained_is_no_loss() -> None:
    """More refusals of harmful prompts and more answers to harmless ones, however significant."""
    validation = Validation(
        replies_of([ANSWERS] * 8), replies_of([REFUSES] * 8), replies_of([ANSWERS] * 8), [True] * 8, 4
    )
    assert validation.needs_repair(0.2) is False
    assert validation.losses["refusals"].p_value < 0.01 and validation.losses["answers"].p_value < 0.01


@pytest.fixture
def validation(model: Any, tokenizer: Any) -> Validation:
    """A random model refuses nothing by itself: here the original refuses half of the harmful prompts."""
    instructions = {("validation", kind): texts for (_, kind), texts in INSTRUCTIONS.items()}
    recorded = record_replies(model, tokenizer, instructions, SIZES)
    harmful = dataclasses.replace(recorded["validation_harmful"], refused=[True, False] * 2)
    harmless = recorded["validation_harmless"]
    return Validation(harmful, harmless, harmless, [False] * 4, 4)


@pytest.fixture
def edit(model: Any) -> Edit:
    """An edit that adds strength * 6.4 to what its module writes of ones along the direction."""
    return Edit.rank_one(modules(model, [3])[0], UNIT.float(), torch.full((128,), 0.05))


@pytest.fixture
def seen(edit: Edit, validation: Validation, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the edited model refuse half of the harmful prompts from 0.5 on, and all prompts from 2 on: strengths asked."""
    strengths: list[float] = []

    def refused(edited_model: Any, _: Any, prompts: Any, tokens: int) -> list[bool]:
        """Read the strength from the model that was handed over."""
        with torch.no_grad():
            module = edited_model.get_submodule(edit.module)
            change = module(torch.ones(1, 1, 128)) - torch.nn.functional.linear(torch.ones(1, 1, 128), module.weight)
        strength = round((change[0, 0] @ UNIT.float()).item() / 6.4, 2)
        harmful = prompts == validation.harmful.prompts
        strengths.append(strength)
        return [strength >= (2.0 if index % 2 or not harmful else 0.5) for index in range(len(prompts))]

    monkeypatch.setattr("aird.patching.validation._refused", refused)
    return strengths


def test_the_strength_is_chosen_by_what_the_checkpoint_replies(
    model: Any, tokenizer: Any, validation: Validation, edit: Edit, seen: list[float]
) -> None:
    """Replies decide where first tokens tell no refusal; each strength is asked once."""
    settings = ChoiceSettings(strengths=[0.25, 0.5, 2.0], kl_budget=10.0, significance=1)
    record = choose_on_validation(model, tokenizer, [edit], 3, validation, settings)
    assert seen == [0.25, 0.25, 0.5, 0.5, 2.0, 2.0]
    assert record["decisions"] == "replies"
    assert record["distances"] == {"0.25": 0.25, "0.5": 0.0, "2": 0.75}
    assert [(row["strength"], row["refusal"]) for row in record["tried"]] == [(0.5, 0.5)]
    assert record["strength"] == 0.5 and "most like the original" in record["reason"]
    assert record["original"] == {"refusal": 0.5, "over_refusal": 0.0}
    assert record["unpatched"].items() >= {"refusal": 0.0, "over_refusal": 0.0, "distance": 0.25}.items()
    batches = make_batches(model, [validation.own], 3, None)
    expected = mean_divergence(model, batches, 3, [edit.scaled(0.5)])
    assert record["tried"][0]["kl_harmless"] == pytest.approx(expected) and expected > 0
    # All prompts of the validation are judged by what a budget says.
    narrow = ChoiceSettings(strengths=[0.5], kl_budget=1e-6, significance=1)
    record = choose_on_validation(model, tokenizer, [edit], 3, validation, narrow)
    assert record["strength"] == 0 and "nothing is patched" in record["reason"]
    assert record["tried"][0]["within_budgets"] is False


def test_the_strength_is_chosen_by_first_tokens_where_they_tell_refusals(
    model: Any, tokenizer: Any, validation: Validation, edit: Edit, seen: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their formula, prompt by prompt, on whole vocabularies; the rates are still those of replies."""
    # Of tokens that are no prompt's likely ones, nothing was kept.
    likely = [row.tolist() for part in (validation.harmful, validation.harmless) for row in part.top_tokens[:, 0]]
    tokens = sorted(set.intersection(*map(set, likely)), key=likely[0].index)[:2]
    monkeypatch.setattr("aird.patching.validation.refusal_tokens", lambda *_: tuple(tokens))
    settings = ChoiceSettings(strengths=[0.25, 0.5, 2.0], kl_budget=10.0, refusal_budget=0.6, significance=1)
    record = choose_on_validation(model, tokenizer, [edit], 3, validation, settings)
    prompts = validation.harmful.prompts + validation.harmless.prompts

    def begins(changed: list[Edit]) -> torch.Tensor:
        with edited(model, changed), torch.no_grad():
            said = [model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in prompts]
        return torch.stack(said).double().softmax(-1)[:, tokens].sum(-1)

    def distance(strength: float) -> float:
        before, after = begins([]), begins([edit.scaled(strength)])  # the original is the checkpoint itself here
        apart = before * (before / after).log() + (1 - before) * ((1 - before) / (1 - after)).log()
        return apart.mean().item()

    assert record["decisions"] == "first_tokens"
    expected = {f"{strength:g}": distance(strength) for strength in (0.25, 0.5, 2.0)}
    assert record["distances"] == pytest.approx(expected, rel=0.05, abs=1e-6) and min(expected.values()) > 0
    assert record["unpatched"]["distance"] == pytest.approx(0, abs=1e-6)
    assert record["strength"] == 0.25 and seen == [0.25, 0.25]  # the nearest, and only that one replies


@pytest.mark.parametrize("significance", [0.2, 1])
def test_the_unpatched_checkpoint_counts_unless_a_patch_is_asked_for(
    significance: float, model: Any, tokenizer: Any, validation: Validation, edit: Edit, seen: list[float]
) -> None:
    """Refusals are lost (4 of 8 more), and a strength of 2 refuses everything: farther from the original than nothing."""
    harmless = dataclasses.replace(validation.harmless, refused=[REFUSES] + [ANSWERS] * 3)
    twice = Validation(replies_of([REFUSES] * 4 + [ANSWERS] * 4), harmless, harmless, [ANSWERS] * 8, 4)
    assert twice.lost(0.2) == ["refusals"]
    twice.harmful.prompts[:] = [*validation.harmful.prompts, *validation.harmless.prompts]
    settings = ChoiceSettings(
        strengths=[2.0], kl_budget=10.0, refusal_budget=0.9, over_refusal_budget=0.99, significance=significance
    )
    record = choose_on_validation(model, tokenizer, [edit], 3, twice, settings)
    assert record["distances"] == {"2": pytest.approx(7 / 12)}
    assert record["unpatched"]["distance"] == pytest.approx(4 / 12)
    assert record["strength"] == (2.0 if significance == 1 else 0)


def test_replies_that_are_to_change_are_no_part_of_what_has_to_stay(
    model: Any, tokenizer: Any, validation: Validation, edit: Edit
) -> None:
    own = dataclasses.replace(validation.own, refused=[False, True, False, False])
    lost = dataclasses.replace(validation, own=own)
    # One of four has p = 1, which counts where any does.
    assert lost.staying(1) == [0, 2, 3] and lost.staying(0.2) == [0, 1, 2, 3]
    settings = ChoiceSettings(strengths=[1.0], kl_budget=10.0, significance=1)
    measured = choose_on_validation(model, tokenizer, [edit], 3, lost, settings)["tried"][0]["kl_harmless"]
    staying = make_batches(model, [own.chosen([0, 2, 3])], 3, None)
    assert measured == pytest.approx(mean_divergence(model, staying, 3, [edit]))
    every = make_batches(model, [own], 3, None)
    assert measured != pytest.approx(mean_divergence(model, every, 3, [edit]), rel=1e-3)


def test_an_edit_of_higher_rank_in_place_is_the_merged_one(model: Any, tokenizer: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    name = modules(model, [1])[1]
    module = model.get_submodule(name)
    up, down = (
        torch.randn(len(module.weight), 2, generator=generator),
        torch.randn(2, module.in_features, generator=generator),
    )
    edit = Edit(name, 0.2 * up, 0.2 * down)
    prompts = [[1, 5, 9], [1, 7]]
    with edited(model, [edit.scaled(0.5)]), torch.no_grad():
        in_place = model(input_ids=torch.tensor(prompts[:1])).logits
        replies = generate(model, tokenizer, prompts, 4)
    with torch.no_grad():
        module.weight += 0.5 * edit.matrix()
        torch.testing.assert_close(in_place, model(input_ids=torch.tensor(prompts[:1])).logits, atol=1e-4, rtol=1e-4)
        assert replies == generate(model, tokenizer, prompts, 4)


@pytest.mark.parametrize("strength", [0.5, 0.0])
@pytest.mark.usefixtures("all_refuse")
def test_the_strength_of_a_lora_is_chosen_and_written(strength: float, original: Path, tmp_path: Path) -> None:
    # The original is the checkpoint itself: nothing is lost, unless the choice is asked for in any case.
    values: dict[str, Any] = {"method": "lora", "rank": 2, "epochs": 1, "maximum_answer_tokens": 2}
    chosen = {**values, "strengths": [0.5], "kl_budget": 100.0, "significance": 1 if strength else 0.2}
    records = {}
    for name, settings in {"whole": values, "chosen": chosen}.items():
        sizes = {"train": 8} | (SIZES.sizes if name == "chosen" else {})
        inputs = PatchInputs("base", original, original, prompts=RECORDS, sizes=sizes)
        records[name] = make_patch(parse_patch(settings), inputs, tmp_path / name, tmp_path / f"{name}.json")
    assert "calibration" not in records["whole"]
    assert records["chosen"]["calibration"]["strength"] == strength
    for whole, part in zip(load_adapter(tmp_path / "whole"), load_adapter(tmp_path / "chosen"), strict=True):
        assert whole.module == part.module and whole.up.norm() > 0
        torch.testing.assert_close(part.matrix(), strength * whole.matrix())
    assert f"| strength | {strength}: " in (tmp_path / "chosen/README.md").read_text(encoding="utf-8")
