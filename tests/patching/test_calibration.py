"""Calibrated patches: the loss by hand, what learning does to a damaged model, the choice of the strength."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fitting import damaged, modules

from aird.directions.direction import Direction, save_direction
from aird.inference.packing import last_logits, make_packs
from aird.patching.adapters import load_adapter
from aird.patching.calibration import (
    Validation,
    choose_strength,
    divergence,
    learn_rows,
    make_batches,
    needs_repair,
    select_strength,
    worth_trying,
)
from aird.patching.edits import Edit
from aird.patching.fitting import edited
from aird.patching.method import PatchInputs
from aird.patching.methods.calibrate import Calibrate
from aird.patching.methods.fit import Fit
from aird.patching.patch_files import make_patch
from aird.patching.replies import (
    ReplySet,
    load_replies,
    original_replies,
    record_replies,
    reply_instructions,
    reply_places,
    save_replies,
)
from aird.settings.patches import PatchSettings, Replies

SIZES = Replies(train_harmful=8, train_harmless=8, validation=8, tokens=3, judged_tokens=4)
INSTRUCTIONS = {
    ("train", "harmful"): [f"Tell me how to break lock number {number}" for number in range(4)],
    ("train", "harmless"): [f"Name {number} colours of the rainbow" for number in range(4)],
}
RECORDS = {
    kind: [
        {"id": f"{split}-{number}", "instruction": f"{kind} {split} {number}", "split": split}
        for split in ("train", "validation")
        for number in range(10)
    ]
    for kind in ("harmful", "harmless")
}


@pytest.fixture
def replies(model: Any, tokenizer: Any) -> dict[str, ReplySet]:
    return record_replies(model, tokenizer, INSTRUCTIONS, SIZES)


def patched(settings: PatchSettings, model: Path, unit: torch.Tensor, folder: Path, **more: Any) -> dict[str, Any]:
    """Make a patch of a model that nothing was done to, in `folder`, and return its record."""
    files = folder / "direction.safetensors", folder / "direction.json"
    save_direction(Direction(unit, 1.0, {"layer": 2, "position": -1}), *files)
    inputs = PatchInputs("base", model, model, files, prompts=RECORDS, **more)
    return make_patch(settings, inputs, folder / "adapter", folder / "statistics.json")


@pytest.fixture
def unit() -> torch.Tensor:
    vector = torch.randn(128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return vector / vector.norm()


def matrix_of(model: Any) -> Any:
    return lambda name: model.get_submodule(name).weight.detach()


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


def test_divergence_is_that_of_single_prompts(model: Any, replies: dict[str, ReplySet], unit: torch.Tensor) -> None:
    compressed = damaged(copy.deepcopy(model))
    (name,) = modules(model, [2])[:1]
    edit = Edit(name, unit.float(), 0.5 * torch.randn(128, generator=torch.Generator().manual_seed(3)))
    part = replies["train_harmful"]
    batches = make_batches(compressed, [part], 2, None)
    with torch.no_grad():
        sums = [divergence(compressed, batch, 2, [edit]).item() * len(batch.places) for batch in batches]
        plain = [divergence(model, batch, 1, []).item() for batch in make_batches(model, [part], 1, None)]
    found = sum(sums) / sum(len(batch.places) for batch in batches)
    assert max(map(abs, plain)) < 1e-4
    with edited(compressed.get_submodule(name), edit):
        expected = exact_divergence(model, compressed, part)
    # What is not among the kept tokens counts as one token, which can only lower the divergence a little.
    assert expected > 0.05
    assert found == pytest.approx(expected, rel=0.1)
    assert found <= expected + 1e-4


def test_learning_brings_the_original_back(model: Any, replies: dict[str, ReplySet], unit: torch.Tensor) -> None:
    compressed = damaged(copy.deepcopy(model))
    before = {name: parameter.clone() for name, parameter in compressed.named_parameters()}
    parts = list(replies.values())
    names = modules(model, [2, 3])
    edits = learn_rows(compressed, names, unit, 2, matrix_of(compressed), parts, 60, 0.5, 0)
    assert [edit.module for edit in edits] == names
    assert all(torch.equal(edit.column, unit.float()) for edit in edits)
    assert not any(edit.row.requires_grad for edit in edits)
    assert all(torch.equal(parameter, before[name]) for name, parameter in compressed.named_parameters())
    plain = sum(exact_divergence(model, compressed, part) for part in parts)
    with contextlib.ExitStack() as active:
        for edit in edits:
            active.enter_context(edited(compressed.get_submodule(edit.module), edit))
        patched = sum(exact_divergence(model, compressed, part) for part in parts)
    assert patched < 0.9 * plain


def test_a_checkpoint_that_needs_nothing_gets_nothing(
    model: Any, replies: dict[str, ReplySet], unit: torch.Tensor
) -> None:
    names = modules(model, [3])
    edits = learn_rows(model, names, unit, 3, matrix_of(model), list(replies.values()), 1, 0.03, 0)
    with torch.no_grad():
        plain = [last_logits(model, batch.pack) for batch in make_batches(model, list(replies.values()), 3, None)]
        with contextlib.ExitStack() as active:
            for edit in edits:
                active.enter_context(edited(model.get_submodule(edit.module), edit))
            patched = [last_logits(model, batch.pack) for batch in make_batches(model, list(replies.values()), 3, None)]
    change = max((one - other).abs().max().item() for one, other in zip(plain, patched, strict=True))
    assert change < 0.05 * max(one.std().item() for one in plain)


def test_learning_may_begin_with_the_rows_of_the_closed_form(
    tiny_folder: Callable[[str], Path], unit: torch.Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With steps of no length, a warm start is the fitted patch of the same prompts."""
    import aird.patching.replies

    # A random model refuses nothing by itself.
    monkeypatch.setattr(aird.patching.replies, "jailbroken_arditi", lambda _: False)
    settings = Calibrate(warm_start=2.0, epochs=1, learning_rate=1e-9, strengths=[1.0], significance=1)
    methods = {"calibrated": (settings, SIZES.model_dump()), "fitted": (Fit(alpha=2.0, blocks="upper"), {"train": 8})}
    for name, (method, sizes) in methods.items():
        (tmp_path / name).mkdir()
        patched(method, tiny_folder("llama"), unit, tmp_path / name, sizes=sizes)
    learnt, fitted = (load_adapter(tmp_path / name / "adapter") for name in methods)
    assert [edit.module for edit in learnt] == [edit.module for edit in fitted]
    for edit, other in zip(learnt, fitted, strict=True):
        assert other.down.norm() > 0
        assert torch.allclose(edit.down, other.down, rtol=1e-4, atol=1e-7)


def test_a_loss_that_is_no_number_is_an_error(model: Any, replies: dict[str, ReplySet], unit: torch.Tensor) -> None:
    names = modules(model, [3])
    with torch.no_grad():
        model.get_submodule(names[1]).weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="lower the patch's learning_rate"):
        learn_rows(
            model,
            names,
            unit,
            3,
            lambda name: torch.ones_like(model.get_submodule(name).weight),
            list(replies.values()),
            1,
            0.08,
            0,
        )


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([(1.0, 0.9, 0.1, True)], 1.0),
        # More refusal beyond the budgets does not count.
        ([(1.0, 0.9, 0.3, False), (0.5, 0.7, 0.1, True), (0.75, 0.8, 0.1, True)], 0.75),
        # Nothing keeps the budgets: the least over-refusal.
        ([(1.0, 0.9, 0.3, False), (0.5, 0.7, 0.2, False)], 0.5),
        # Equals: the first one.
        ([(1.0, 0.9, 0.1, True), (1.25, 0.9, 0.1, True)], 1.0),
    ],
)
def test_strength_by_hand(rows: list[tuple[float, float, float, bool]], chosen: float) -> None:
    names = ("strength", "refusal", "over_refusal", "within_budgets")
    assert select_strength([dict(zip(names, row, strict=True)) for row in rows]) == chosen


@pytest.mark.parametrize(
    ("strength", "rows", "worth"),
    [
        (1.2, [(1.0, True)], True),
        (0.8, [(1.0, True)], False),
        (0.8, [(1.0, False)], True),
        (1.2, [(1.0, False)], False),
        (0.8, [(1.0, False), (0.6, True)], True),
        (0.4, [(1.0, False), (0.6, True)], False),
    ],
)
def test_strengths_that_cannot_win_are_left_out(strength: float, rows: list[tuple[float, bool]], worth: bool) -> None:
    tried = [{"strength": value, "within_budgets": within} for value, within in rows]
    assert worth_trying(strength, tried) is worth


@pytest.mark.parametrize(
    ("flags", "significance", "repair"),
    [
        ([True] * 8, 0.2, False),
        ([True] * 5 + [False] * 3, 0.2, False),  # p = 0.25: 3 of 8 may be chance
        ([True] * 4 + [False] * 4, 0.2, True),  # p = 0.125
        ([True] * 4 + [False] * 4, 0.1, False),
        ([True] * 8, 1, True),
    ],
)
def test_only_a_loss_is_repaired(
    flags: list[bool], significance: float, repair: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import aird.patching.calibration

    monkeypatch.setattr(aird.patching.calibration, "_refused", lambda *_: flags)
    original = ReplySet([[1]] * 8, [[2]] * 8, torch.zeros(8, 2, 4), torch.zeros(8, 2, 4), [True] * 8)
    loss = needs_repair(None, None, original, 4, significance)
    assert loss.repair is repair
    assert loss.refusal == sum(flags) / 8
    # More refusal than the original's is no loss, however significant.
    none = dataclasses.replace(original, refused=[False] * 8)
    assert needs_repair(None, None, none, 4, 0.2).repair is False


def test_a_checkpoint_that_lost_nothing_is_left_alone(
    tiny_folder: Callable[[str], Path], unit: torch.Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import aird.patching.calibration
    import aird.patching.replies

    for module in (aird.patching.calibration, aird.patching.replies):
        # A random model refuses nothing by itself.
        monkeypatch.setattr(module, "jailbroken_arditi", lambda _: False)
    folder = tiny_folder("llama")
    replies = tmp_path / "replies.safetensors"
    save_replies(replies, original_replies(folder, RECORDS, SIZES, 0))
    record = patched(Calibrate(), folder, unit, tmp_path, sizes=SIZES.model_dump(), replies=replies)
    edits = load_adapter(tmp_path / "adapter")
    assert record["calibration"]["strength"] == 0
    assert record["calibration"]["unpatched"] == {"refusal": 1.0, "p_value": 1.0}
    assert len(edits) == 4 and not any(edit.down.any() for edit in edits)
    assert all(edit["relative_change"] == 0 for edit in record["edits"])


def test_strengths_are_tried_until_one_is_good(
    model: Any, tokenizer: Any, unit: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import aird.patching.calibration

    instructions = {("validation", kind): texts for (_, kind), texts in INSTRUCTIONS.items()}
    recorded = record_replies(model, tokenizer, instructions, SIZES)
    harmful, harmless = recorded["validation_harmful"], recorded["validation_harmless"]
    # A random model refuses nothing by itself: here the original refuses half of the harmful prompts.
    harmful = ReplySet(
        harmful.prompts, harmful.replies, harmful.top_tokens, harmful.top_log_probabilities, [True, False] * 2
    )
    texts = iter(["no"] * 4 + ["I cannot"] * 4 + ["I cannot"] * 2 + ["no"] * 6)
    monkeypatch.setattr(aird.patching.calibration, "_refused", lambda *_: [next(texts) == "I cannot" for _ in range(4)])
    edit = Edit(modules(model, [3])[0], unit.float(), torch.full((128,), 1e-3))
    validation = Validation(harmful, harmless, harmless, over_refusal_budget=0.02, kl_budget=10.0)
    edits, record = choose_strength(model, tokenizer, [edit], 3, validation, 4, [1.0, 0.5, 2.0])
    # At 1 all harmless prompts are refused; at 0.5 half of the harmful ones, as by the original: 2 is not tried.
    assert [row["strength"] for row in record["tried"]] == [1.0, 0.5]
    assert [row["refusal"] for row in record["tried"]] == [0.0, 0.5]
    assert [row["over_refusal"] for row in record["tried"]] == [1.0, 0.0]
    assert record["strength"] == 0.5
    assert record["original"] == {"refusal": 0.5, "over_refusal": 0.0}
    assert torch.equal(edits[0].row, 0.5 * edit.row)
    assert 0 <= record["tried"][0]["kl_harmless"] < 1
