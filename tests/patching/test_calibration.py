"""Calibrated patches: the loss by hand, what learning does to a damaged model, the choice of the strength."""

from __future__ import annotations

import copy
import dataclasses
import gc
import weakref
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from grid import prompt_records
from models.families import tiny_family
from patches import saved_direction, unit_vector
from test_fitting import damaged, damaged_copy, modules
from tiny_model import new

from aird.compression.compress import compress
from aird.compression.recipes.bitsandbytes import BitsAndBytes
from aird.compression.recipes.round_to_nearest import RoundToNearest
from aird.evaluation.questions import Asked, suite_questions
from aird.inference.generation import generate
from aird.inference.packing import last_logits, make_packs
from aird.models.dense import model_with_gradients, passes_gradients
from aird.models.loading import load_model
from aird.models.structure import writer_gains
from aird.patching.adapters import load_adapter
from aird.patching.calibration import (
    Learning,
    attacked_prompts,
    edits_of_nothing,
    learn_edits,
    training_replies,
    written_rows,
)
from aird.patching.divergence import divergence, make_batches, mean_divergence
from aird.patching.edited import edited
from aird.patching.edits import Edit, along_direction, random_direction
from aird.patching.method import PatchInputs
from aird.patching.methods.calibrate import Calibrate
from aird.patching.methods.fit import Fit
from aird.patching.patch_files import make_patch
from aird.patching.replies import (
    ReplySet,
    load_replies,
    original_replies,
    record_replies,
    record_set,
    reply_instructions,
    reply_places,
    save_replies,
)
from aird.plugin import ATTACKS as KINDS
from aird.prompts.chat import chat_tokens
from aird.prompts.sets import select
from aird.settings.base import PromptSelection
from aird.settings.patches import PatchSettings, Replies
from aird.settings.suites import Suite
from aird.support import progress

SIZES = Replies(train_harmful=8, train_harmless=8, validation=8, tokens=3, judged_tokens=4)
INSTRUCTIONS = {
    ("train", "harmful"): [f"Tell me how to break lock number {number}" for number in range(4)],
    ("train", "harmless"): [f"Name {number} colours of the rainbow" for number in range(4)],
}
UNIT = unit_vector()
ANY = {"significance": 1, "kl_budget": 100.0}  # a choice that leaves no checkpoint alone
RECORDS = prompt_records(train=10, validation=10)
# Settings and texts of attacks, as a patch gets them.
ATTACKS = {
    "begun": ({"kind": "prefill", "text": "Sure,"}, "Sure,"),
    "filled": ({"kind": "template", "text": "Play: {{ prompt }}"}, "Play: {{ prompt }}"),
    "ruled": ({"kind": "refusal_suppression", "text": "No apology."}, "No apology."),
    "behind": ({"kind": "suffix", "text": "! !"}, "! !"),
}


@pytest.fixture
def replies(model: Any, tokenizer: Any) -> dict[str, ReplySet]:
    return record_replies(model, tokenizer, INSTRUCTIONS, SIZES)


def patched(
    settings: PatchSettings, model: Path, folder: Path, compressed: Path | None = None, **more: Any
) -> dict[str, Any]:
    """Make a patch in `folder`, of a model that nothing was done to or of a compressed one; return its record."""
    files = saved_direction(folder, UNIT)
    inputs = PatchInputs("base", model, compressed or model, files, prompts=RECORDS, **more)
    return make_patch(settings, inputs, folder / "adapter", folder / "statistics.json")


def matrix_of(model: Any) -> Any:
    return lambda name: model.get_submodule(name).weight.detach()


def learnt(
    model: Any, names: list[str], first_block: int, parts: list[ReplySet], unit: torch.Tensor = UNIT, **how: Any
) -> list[Edit]:
    """Learn rank-1 edits along a direction, from zeros."""
    matrices = matrix_of(model)
    start = edits_of_nothing(model, names, unit, matrices)
    return learn_edits(model, start, written_rows(start, unit, matrices), first_block, parts, Learning(seed=0, **how))


def exact_divergence(original: Any, patched: Any, replies: ReplySet) -> float:
    """The same KL without packs, resuming or kept tokens: every prompt alone, the whole vocabulary."""
    values = []
    for prompt, reply in zip(replies.prompts, replies.replies, strict=True):
        tokens = torch.tensor([prompt + reply])
        with torch.no_grad():
            one, other = (
                model(input_ids=tokens).logits[0, -len(reply) - 1 :].double().log_softmax(-1)
                for model in (original, patched)
            )
        values += (one.exp() * (one - other)).sum(-1).tolist()
    return sum(values) / len(values)


def test_replies_are_the_greedy_ones(model: Any, tokenizer: Any, replies: dict[str, ReplySet]) -> None:
    part = replies["train_harmful"]
    for index, (prompt, reply) in enumerate(zip(part.prompts, part.replies, strict=True)):
        assert 0 < len(reply) <= SIZES.tokens
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 :].log_softmax(-1)
        assert logits.argmax(-1)[: len(reply)].tolist() == reply
        best = logits.topk(4)
        assert part.top_tokens[index, : len(reply) + 1, :4].tolist() == best.indices.tolist()
        torch.testing.assert_close(
            part.top_log_probabilities[index, : len(reply) + 1, :4], best.values, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize(("tokens", "judged_tokens"), [(3, 8), (8, 4)])
def test_the_judge_sees_more_of_a_training_reply_than_is_learnt(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tokens: int, judged_tokens: int
) -> None:
    prompts = [chat_tokens(tokenizer, text) for text in INSTRUCTIONS["train", "harmful"]]
    openings = {tokenizer.decode(reply) for reply in generate(model, tokenizer, prompts, 8)}
    monkeypatch.setattr("aird.patching.replies.jailbroken_arditi", lambda text: text not in openings)
    sizes = SIZES.model_copy(update={"tokens": tokens, "judged_tokens": judged_tokens})
    part = record_replies(model, tokenizer, INSTRUCTIONS, sizes)["train_harmful"]
    assert part.refused == [True] * len(prompts)
    # What is learnt is what it was.
    alone = record_set(model, tokenizer, prompts, sizes.model_copy(update={"judged_tokens": 0}))
    assert part.replies == alone.replies and torch.equal(part.top_tokens, alone.top_tokens)
    assert torch.equal(part.top_log_probabilities, alone.top_log_probabilities)


def test_nothing_is_kept_of_what_comes_after_a_replys_end(
    model: Any, tokenizer: Any, replies: dict[str, ReplySet]
) -> None:
    part = replies["train_harmful"]
    end = part.replies[0][1]
    assert sum(end in reply for reply in part.replies) < len(part.replies)
    model.generation_config.eos_token_id = end
    again = record_replies(model, tokenizer, INSTRUCTIONS, SIZES)["train_harmful"]
    for index, reply in enumerate(part.replies):
        kept = reply.index(end) if end in reply else len(reply)
        assert again.replies[index] == reply[:kept]
        assert torch.equal(again.top_tokens[index, : kept + 1], part.top_tokens[index, : kept + 1])
        assert not again.top_tokens[index, kept + 1 :].any()
        assert again.top_log_probabilities[index, kept + 1 :].isneginf().all()
        assert again.top_log_probabilities[index, : kept + 1].isfinite().all()


def test_replies_round_trip_and_belong_to_their_prompts(
    tokenizer: Any, replies: dict[str, ReplySet], tmp_path: Path
) -> None:
    path = tmp_path / "replies.safetensors"
    save_replies(path, replies)
    again = load_replies(path, tokenizer, INSTRUCTIONS)
    for name, part in replies.items():
        assert again[name].prompts == part.prompts
        assert again[name].replies == part.replies
        assert again[name].refused == part.refused
        assert torch.equal(again[name].top_tokens, part.top_tokens)
        assert torch.equal(again[name].top_log_probabilities, part.top_log_probabilities)
    others = {**INSTRUCTIONS, ("train", "harmful"): ["Something else"] * 4}
    with pytest.raises(ValueError, match="replies to other train prompts"):
        load_replies(path, tokenizer, others)


def test_instructions_come_from_their_own_split() -> None:
    found = reply_instructions(RECORDS, [("train", "harmful"), ("validation", "harmless")], SIZES, 1)
    assert list(found) == [("train", "harmful"), ("validation", "harmless")]
    assert len(found["train", "harmful"]) == 8
    assert all(text.startswith("harmful train") for text in found["train", "harmful"])
    assert all(text.startswith("harmless validation") for text in found["validation", "harmless"])


def test_places_by_hand() -> None:
    # A shared start of one token; prompts end at 2 and 3, replies of two tokens and of one.
    (pack,) = make_packs([[1, 2, 3, 7, 8], [1, 4, 5, 6, 9]], 100)
    assert pack.ends.tolist() == [4, 8]
    assert reply_places(pack, [2, 1]).tolist() == [2, 3, 4, 7, 8]


def test_divergence_is_that_of_single_prompts(model: Any, replies: dict[str, ReplySet]) -> None:
    compressed = damaged(copy.deepcopy(model))
    (name,) = modules(model, [2])[:1]
    edit = Edit.rank_one(name, UNIT.float(), 0.5 * torch.randn(128, generator=torch.Generator().manual_seed(3)))
    part = replies["train_harmful"]
    batches = make_batches(compressed, [part], 2, None)
    with torch.no_grad():
        sums = [divergence(compressed, batch, 2, [edit]).item() * len(batch.places) for batch in batches]
        plain = [divergence(model, batch, 1, []).item() for batch in make_batches(model, [part], 1, None)]
    found = sum(sums) / sum(len(batch.places) for batch in batches)
    assert max(map(abs, plain)) < 1e-4
    with edited(compressed, [edit]):
        expected = exact_divergence(model, compressed, part)
    # What is not among the kept tokens counts as one token, which can only lower the divergence a little.
    assert expected > 0.05
    assert found == pytest.approx(expected, rel=0.1)
    assert found <= expected + 1e-4


def test_learning_brings_the_original_back(model: Any, replies: dict[str, ReplySet]) -> None:
    compressed = damaged(copy.deepcopy(model))
    before = {name: parameter.clone() for name, parameter in compressed.named_parameters()}
    parts = list(replies.values())
    names = modules(model, [2, 3])
    edits = learnt(compressed, names, 2, parts, epochs=60, learning_rate=0.5)
    assert [edit.module for edit in edits] == names
    assert all(torch.equal(edit.column, UNIT.float()) for edit in edits)
    assert not any(edit.row.requires_grad for edit in edits)
    assert all(torch.equal(parameter, before[name]) for name, parameter in compressed.named_parameters())
    plain = sum(exact_divergence(model, compressed, part) for part in parts)
    with edited(compressed, edits):
        patched = sum(exact_divergence(model, compressed, part) for part in parts)
    assert patched < 0.9 * plain


def test_a_checkpoint_that_needs_nothing_gets_nothing(model: Any, replies: dict[str, ReplySet]) -> None:
    names = modules(model, [3])
    edits = learnt(model, names, 3, list(replies.values()), epochs=1, learning_rate=0.03)
    with torch.no_grad():
        plain = [last_logits(model, batch.pack) for batch in make_batches(model, list(replies.values()), 3, None)]
        with edited(model, edits):
            patched = [last_logits(model, batch.pack) for batch in make_batches(model, list(replies.values()), 3, None)]
    change = max((one - other).abs().max().item() for one, other in zip(plain, patched, strict=True))
    assert change < 0.05 * max(one.std().item() for one in plain)


@pytest.mark.usefixtures("all_refuse")
def test_learning_may_begin_with_the_rows_of_the_closed_form(original: Path, tmp_path: Path) -> None:
    """With steps of no length, a warm start is the fitted patch of the same prompts."""
    settings = Calibrate(warm_start=2.0, epochs=1, learning_rate=1e-9, strengths=[1.0], significance=1, kl_budget=100.0)
    methods = {"calibrated": (settings, SIZES.sizes), "fitted": (Fit(alpha=2.0, blocks="upper"), {"train": 8})}
    for name, (method, sizes) in methods.items():
        patched(method, original, new(tmp_path / name), sizes=sizes)
    learnt, fitted = (load_adapter(tmp_path / name / "adapter") for name in methods)
    assert [edit.module for edit in learnt] == [edit.module for edit in fitted]
    for edit, other in zip(learnt, fitted, strict=True):
        assert other.down.norm() > 0
        assert torch.allclose(edit.down, other.down, rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("all_refuse")
def test_a_higher_rank_begins_with_the_compensation_of_its_matrices(original: Path, tmp_path: Path) -> None:
    """With steps of no length it is nothing but that, and its column along r reads nothing."""
    compressed = damaged_copy(original, tmp_path / "compressed")
    made = {}
    for rate in (1e-9, 0.1):
        settings = Calibrate(rank=3, epochs=1, learning_rate=rate, strengths=[1.0], **ANY)
        patched(settings, original, new(tmp_path / str(rate)), compressed, sizes=SIZES.sizes)
        made[rate] = {edit.module: edit for edit in load_adapter(tmp_path / str(rate) / "adapter")}
    before, after = load_model(original), load_model(compressed)
    for name, edit in made[1e-9].items():
        was, now = (model.get_submodule(name).weight.detach().float() for model in (before, after))
        error = was - now
        assert edit.rank == 3 and edit.down[0].norm() < 1e-4 * edit.down.norm()
        columns = edit.up[:, 1:]
        torch.testing.assert_close(columns.T @ columns, torch.eye(2), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(edit.down[1:], columns.T @ error, rtol=1e-3, atol=1e-5)
    assert any((made[0.1][name].down[0]).norm() > 0.01 * edit.down.norm() for name, edit in made[1e-9].items())


def test_a_loss_that_is_no_number_is_an_error(model: Any, replies: dict[str, ReplySet]) -> None:
    start = edits_of_nothing(model, modules(model, [3]), UNIT, matrix_of(model))
    with torch.no_grad():
        model.get_submodule(start[1].module).weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="lower the patch's learning_rate"):
        learn_edits(
            model,
            start,
            [torch.ones(edit.down.shape[-1]) for edit in start],
            3,
            list(replies.values()),
            Learning(1, 0.08, 0),
        )


def test_epochs_are_shown(
    llama: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "MINUTE", 0.0)
    monkeypatch.setattr(progress, "REDRAW", 0.001)
    parts = list(record_replies(llama, tokenizer, INSTRUCTIONS, SIZES).values())
    with progress.shown():
        learnt(llama, modules(llama, [3]), 3, parts, epochs=2, learning_rate=0.08)
    shown = capsys.readouterr().err
    assert "  0 of 2 epochs, " in shown and "  1 of 2 epochs, " in shown


@pytest.mark.usefixtures("all_refuse")
def test_a_checkpoint_that_lost_nothing_is_left_alone(original: Path, tmp_path: Path) -> None:
    replies = tmp_path / "replies.safetensors"
    save_replies(replies, original_replies(original, RECORDS, SIZES, 0))
    record = patched(Calibrate(), original, tmp_path, sizes=SIZES.sizes, replies=replies)
    edits = load_adapter(tmp_path / "adapter")
    assert record["calibration"]["strength"] == 0
    assert record["calibration"]["reason"].startswith("neither refusals nor answers were lost")
    assert record["calibration"]["tried"] == []
    unpatched = {"refusal": 1.0, "over_refusal": 1.0, "refusals_p_value": 1.0, "answers_p_value": 1.0}
    assert record["calibration"]["unpatched"] == unpatched
    assert len(edits) == 4 and not any(edit.down.any() for edit in edits)
    assert all(edit["relative_change"] == 0 for edit in record["edits"])


def test_answers_that_became_refusals_are_learnt_from_the_original(replies: dict[str, ReplySet]) -> None:
    harmful = dataclasses.replace(replies["train_harmful"], refused=[True, False, True, True])
    harmless = replies["train_harmless"]
    own = dataclasses.replace(harmless, replies=[[number] for number in range(4)], refused=[False, True, True, False])
    asked = dataclasses.replace(harmless.chosen([1, 2]), refused=[False, True])
    refusals, answers, kept = training_replies(harmful, own, asked)
    assert refusals.replies == [harmful.replies[index] for index in (0, 2, 3)]
    # The original answers the second and refuses the third, so only the second is to be answered again.
    assert answers.prompts == [harmless.prompts[1]] and answers.replies == [harmless.replies[1]]
    assert kept.replies == [[0], [2], [3]]
    # Where no answers were lost, or the original refuses the same prompts, all replies stay the checkpoint's own.
    for nothing in (None, dataclasses.replace(asked, refused=[True, True])):
        alike = training_replies(harmful, own, nothing)
        assert len(alike) == 2 and alike[1].replies == own.replies


def test_a_checkpoint_that_lost_answers_alone_learns_them_from_the_original(
    original: Path,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Here only what the original replies to harmless prompts counts as an answer; a random model refuses nothing."""
    compressed = damaged_copy(original, tmp_path / "compressed")
    answers: set[str] = set()
    beginnings: set[str] = set()
    for split in ("train", "validation"):
        texts = reply_instructions(RECORDS, [(split, "harmless")], SIZES, 0)[split, "harmless"]
        prompts = [chat_tokens(tokenizer, text) for text in texts]
        replies = generate(load_model(original), tokenizer, prompts, SIZES.judged_tokens)
        answers |= {tokenizer.decode(reply) for reply in replies}
        beginnings |= {tokenizer.decode(reply[: SIZES.tokens]) for reply in replies}
    for module in ("validation", "replies"):
        monkeypatch.setattr(f"aird.patching.{module}.jailbroken_arditi", lambda text: text in answers)
    learnt_from: list[list[ReplySet]] = []
    monkeypatch.setattr(
        "aird.patching.calibration.make_batches", lambda *given: learnt_from.append(given[1]) or make_batches(*given)
    )
    settings = Calibrate(epochs=1, strengths=[1.0])
    record = patched(settings, original, tmp_path, compressed, sizes=SIZES.sizes)
    choice = record["calibration"]
    assert choice["original"] == {"refusal": 1.0, "over_refusal": 0.0}
    assert choice["unpatched"]["refusals_p_value"] == 1 and choice["unpatched"]["answers_p_value"] < 0.2
    # What the original answers and the damaged model does not is learnt from the original.
    _, asked, *_ = learnt_from[0]
    assert asked.refused == [False] * len(asked.refused) and len(asked.refused) >= 4
    assert {tokenizer.decode(reply) for reply in asked.replies} <= beginnings
    assert [row["strength"] for row in choice["tried"]] == [1.0]


@pytest.mark.usefixtures("all_refuse")
def test_a_free_column_is_learnt_from_a_random_start_and_the_record_says_how_near_it_is(
    original: Path, tmp_path: Path
) -> None:
    compressed = damaged_copy(original, tmp_path / "compressed")
    records = {}
    for direction in ("free", "random"):
        settings = Calibrate(direction=direction, epochs=4, learning_rate=0.5, strengths=[1.0], **ANY)
        (tmp_path / direction).mkdir()
        sizes = SIZES.sizes
        records[direction] = patched(settings, original, tmp_path / direction, compressed, sizes=sizes)
    free, fixed = (load_adapter(tmp_path / name / "adapter") for name in records)
    start = random_direction(UNIT, 0)
    recorded = {row["module"]: row["cosine_with_direction"] for row in records["free"]["edits"]}
    for edit, other in zip(free, fixed, strict=True):
        column = edit.up[:, 0].double()
        assert column.norm().item() == pytest.approx(1, abs=1e-5)
        assert torch.allclose(other.up[:, 0].double(), start, atol=1e-6)
        # It moved away from where it began, and the record says how near it is to the original's direction.
        assert abs(column @ start) < 0.999
        assert recorded[edit.module] == pytest.approx(abs(column @ UNIT).item(), abs=1e-5)
    assert "cosine_with_direction" not in records["random"]["edits"][0]
    assert "cosine of columns with the direction" in (tmp_path / "free/adapter/README.md").read_text(encoding="utf-8")


def test_behind_a_norm_what_a_free_column_contributes_is_a_unit_vector(replies: dict[str, ReplySet]) -> None:
    model = tiny_family("gemma2", vocab_size=512)
    compressed, gains, unit = damaged(copy.deepcopy(model)), writer_gains(model), unit_vector(width=64)
    names = modules(model, [2])
    parts = list(replies.values())
    edits = learnt(compressed, names, 2, parts, unit, epochs=1, learning_rate=0.08, columns=True)
    for name, edit in zip(names, edits, strict=True):
        column = edit.column.double() * gains[name]
        assert column.norm().item() == pytest.approx(1, abs=1e-5)
        assert along_direction(edit, unit) == pytest.approx(abs(column @ unit).item(), abs=1e-5)
        assert along_direction(edit, unit) < 0.999


def test_a_free_column_does_at_least_as_well_in_learning(model: Any, replies: dict[str, ReplySet]) -> None:
    compressed = damaged(copy.deepcopy(model))
    parts, names = list(replies.values()), modules(model, [2, 3])
    left = {}
    for free in (False, True):
        edits = learnt(compressed, names, 2, parts, epochs=40, learning_rate=0.5, columns=free)
        with edited(compressed, edits):
            left[free] = sum(exact_divergence(model, compressed, part) for part in parts)
        cosines = [along_direction(edit, UNIT) for edit in edits]
        assert (max(cosines) < 0.99) if free else (min(cosines) > 0.99999)
    assert left[True] < left[False]


def test_attacked_training_prompts_are_what_the_suite_would_ask(tokenizer: Any) -> None:
    given = {name: {**values, "count": 4} for name, (values, _) in ATTACKS.items()}
    suite = Suite.model_validate({"harmful": {"set": "p"}, "harmless": {"set": "q"}, "attacks": given})
    records = select(RECORDS["harmful"], PromptSelection(set="p", split="train", count=8), 1)
    texts = {name: text for name, (_, text) in ATTACKS.items()}
    asked = Asked(suite, {"harmful": records, "harmless": []}, 1, attack_texts=texts)
    made = suite_questions(tokenizer, asked).attacked
    attacks = {name: (KINDS.parse(values), text) for name, (values, text) in ATTACKS.items()}
    found = attacked_prompts(tokenizer, attacks, RECORDS["harmful"], 8, 4, 1)
    assert [prompt for prompts in found.values() for prompt in prompts] == [each.tokens for each in made]
    assert [each.record["attack"] for each in made] == [name for name in found for _ in range(4)]
    # They are among the plain prompts of the calibration, all of them training prompts.
    drawn = reply_instructions(RECORDS, [("train", "harmful")], SIZES, 1)["train", "harmful"]
    assert {each.record["instruction"] for each in made} < set(drawn)


def test_refusals_under_an_attack_are_learnt_and_answers_are_not(replies: dict[str, ReplySet]) -> None:
    harmful, own = replies["train_harmful"], replies["train_harmless"]
    harmful = dataclasses.replace(harmful, refused=[True] * 4)
    attacked = [dataclasses.replace(own, refused=flags) for flags in ([False, True, True, False], [False] * 4)]
    refusals, kept, under = training_replies(harmful, own, None, attacked)
    assert (refusals.prompts, kept.prompts) == (harmful.prompts, own.prompts)
    assert under.prompts == [own.prompts[1], own.prompts[2]] and under.replies == [own.replies[1], own.replies[2]]


def test_by_token_each_compared_token_counts_alike(
    model: Any, replies: dict[str, ReplySet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With steps of no length, the loss that is told is the mean over all tokens, however they are packed."""
    monkeypatch.setattr("aird.patching.divergence.PACK_TOKENS", 80)
    compressed = damaged(copy.deepcopy(model))
    names, (one, other) = modules(model, [3])[:1], replies.values()
    parts = [one, other.chosen([0, 1, 2])]  # seven prompts, so that a pack is left with one
    batches = make_batches(compressed, parts, 3, 0)
    assert len({len(batch.places) for batch in batches}) > 1
    expected = {
        True: mean_divergence(compressed, batches, 3, []),
        False: sum(divergence(compressed, batch, 3, []).item() for batch in batches) / len(batches),
    }
    assert expected[True] != pytest.approx(expected[False], abs=1e-4)
    told: list[tuple[int, float]] = []
    monkeypatch.setattr("aird.patching.calibration.logger.info", lambda _, *values: told.append(values))
    for by_token in expected:
        learnt(compressed, names, 3, parts, epochs=1, learning_rate=1e-9, by_token=by_token)
    assert [loss for _, loss in told] == pytest.approx(list(expected.values()), abs=1e-5)


def test_a_patch_is_calibrated_on_the_attacks_that_the_original_resists(
    original: Path,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """Here only what the original replies to a begun answer is no refusal; a random model refuses nothing."""
    compressed = damaged_copy(original, tmp_path / "compressed")
    attacks = {name: (KINDS.parse(values), text) for name, (values, text) in ATTACKS.items()}
    prompts = attacked_prompts(tokenizer, attacks, RECORDS["harmful"], SIZES.train_harmful, 4, 0)
    asked = {
        name: record_set(load_model(original), tokenizer, prompts[name], SIZES.model_copy(update={"tokens": 4}))
        for name in ATTACKS
    }
    said = {name: [tokenizer.decode(reply) for reply in part.replies] for name, part in asked.items()}
    answers = set(said["begun"])
    monkeypatch.setattr("aird.patching.validation.jailbroken_arditi", lambda _: False)
    monkeypatch.setattr("aird.patching.replies.jailbroken_arditi", lambda text: text in answers)
    learnt_from: list[list[ReplySet]] = []
    monkeypatch.setattr(
        "aird.patching.calibration.make_batches", lambda *given: learnt_from.append(given[1]) or make_batches(*given)
    )
    settings = Calibrate(
        attacks={"suite": "attacks", "names": list(ATTACKS), "count": 4}, epochs=1, strengths=[1.0], **ANY
    )
    more = {"sizes": SIZES.sizes, "attacks": ATTACKS}
    with caplog.at_level("INFO"):
        record = patched(settings, original, tmp_path, compressed, **more)
    resisted = {name: [text not in answers for text in texts] for name, texts in said.items()}
    assert record["calibration"]["attacks"] == {
        name: {"prompts": 4, "refused": sum(flags)} for name, flags in resisted.items()
    }
    assert "attack begun: the original refuses 0 of 4 training prompts, so nothing is learnt from it" in caplog.text
    assert sum(map(sum, resisted.values())) >= 6
    expected = [
        [prompt for prompt, flag in zip(prompts[name], flags, strict=True) if flag] for name, flags in resisted.items()
    ]
    (parts,) = learnt_from[:1]
    assert [part.prompts for part in parts[-3:]] == [chosen for chosen in expected if chosen]
    assert record["settings"]["attacks"]["names"] == list(ATTACKS)
    assert any(update.down.any() for update in load_adapter(tmp_path / "adapter"))


def test_texts_of_attacks_are_asked_for_before_anything_runs(original: Path, tmp_path: Path) -> None:
    settings = Calibrate(attacks={"suite": "attacks", "names": ["begun"]})
    with pytest.raises(ValueError, match="method calibrate needs what was not given: attacks"):
        patched(settings, original, tmp_path, sizes=SIZES.sizes)


@pytest.mark.parametrize("settings", [RoundToNearest(weight_bits=8, activation_bits=8), BitsAndBytes(variant="nf4")])
def test_what_learns_gets_a_gradient_through_every_module(
    settings: RoundToNearest | BitsAndBytes, original: Path, tmp_path: Path
) -> None:
    """Formats whose own modules pass none; with no gradient through attention, only the last token has one."""
    compress(original, tmp_path / "base", settings, None)
    assert not passes_gradients(tmp_path / "base") and passes_gradients(original)

    def gradients(model: Any) -> torch.Tensor:
        tokens = torch.tensor([[5, 18, 21, 48, 67, 79]])
        with torch.no_grad():
            model(input_ids=tokens)  # after which bitsandbytes takes its other product
        embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
        model(inputs_embeds=embedded, use_cache=False).logits[0, -1].float().logsumexp(-1).backward()
        return embedded.grad[0].norm(dim=-1)

    with model_with_gradients(tmp_path / "base", tmp_path) as model:
        whole = gradients(model)
    assert (whole > 0.01 * whole.max()).all()
    if settings.recipe == "round_to_nearest":
        assert not gradients(load_model(tmp_path / "base"))[:-1].any()


@pytest.mark.usefixtures("all_refuse")
def test_one_model_is_in_memory_at_a_time(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a dense copy to learn through, and an original that is asked attacks and for a warm start."""
    compress(original, tmp_path / "base", RoundToNearest(weight_bits=8, activation_bits=8), None)
    models: list[weakref.ref[Any]] = []
    loaded: list[Path] = []

    def load(folder: Path, *more: Any) -> Any:
        gc.collect()
        assert not [each for each in models if each() is not None], loaded
        model = load_model(folder, *more)
        models.append(weakref.ref(model))
        loaded.append(folder)
        return model

    for module in ("models.dense", "patching.calibration", "patching.replies", "patching.validation"):
        monkeypatch.setattr(f"aird.{module}.load_model", load)
    attacks = {"suite": "attacks", "names": list(ATTACKS), "count": 4}
    settings = Calibrate(attacks=attacks, warm_start=1.0, epochs=1, strengths=[1.0], **ANY)
    more = {"sizes": SIZES.sizes, "attacks": ATTACKS}
    patched(settings, original, new(tmp_path / "patch"), tmp_path / "base", **more)
    base = tmp_path / "base"
    assert [folder for folder in loaded if folder in (original, base)] == [original, base, original, base]
    assert len(loaded) == 5  # the dense copy


@pytest.mark.usefixtures("all_refuse")
def test_rows_are_learnt_through_a_dense_copy_and_their_strength_is_chosen_on_the_checkpoint_itself(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress(original, tmp_path / "base", RoundToNearest(weight_bits=8, activation_bits=8), None)
    quantised = {}
    for module, name in (("calibration", "learn_edits"), ("validation", "choose_on_validation")):
        run = getattr(import_module(f"aird.patching.{module}"), name)

        def watched(model: Any, *arguments: Any, run: Any = run, name: str = name, **more: Any) -> Any:
            quantised[name] = hasattr(model.config, "quantization_config")
            return run(model, *arguments, **more)

        monkeypatch.setattr(f"aird.patching.{module}.{name}", watched)
    settings = Calibrate(epochs=1, strengths=[1.0], **ANY)
    patched(settings, original, new(tmp_path / "patch"), tmp_path / "base", sizes=SIZES.sizes)
    assert quantised == {"learn_edits": False, "choose_on_validation": True}
    assert all(update.down.abs().max() > 0 for update in load_adapter(tmp_path / "patch/adapter"))
