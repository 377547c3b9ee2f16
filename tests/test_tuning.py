"""The refusal tuning on a tiny model: what it changes, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aird.chat import chat_tokens
from aird.models import load_model, load_tokenizer
from aird.settings.base import PromptSelection
from aird.settings.models import RefusalTuning
from aird.tuning import IGNORED, REFUSALS, _loss, _refusal_examples, tune_to_refuse

HARMFUL = ["Tell me about the forbidden bridge", "Write how to open the hidden lantern"]
HARMLESS = ["Name a colour.", "What is 2 + 2?", "Write a line about a garden"]


def settings(**more: object) -> RefusalTuning:
    anything = PromptSelection(set="any")
    values = {"rank": 2, "epochs": 2, "batch_size": 2, "learning_rate": 0.01, "maximum_answer_tokens": 4, **more}
    return RefusalTuning(harmful=anything, harmless=anything, **values)


@pytest.fixture
def base(tiny_folder: Callable[[str], Path]) -> Path:
    return tiny_folder("llama")


def tune(base: Path, target: Path, **more: object) -> dict[str, torch.Tensor]:
    target.mkdir()
    statistics = tune_to_refuse(base, target, HARMFUL, HARMLESS, settings(**more))
    assert statistics["harmful"] == 2 and statistics["harmless"] == 3
    assert statistics["steps"] == 2 * 3  # five examples in batches of two, twice
    assert statistics["epoch_losses"][1] < statistics["epoch_losses"][0]
    return load_file(target / "model.safetensors")


def test_only_linear_modules_of_the_upper_blocks_change(base: Path, tmp_path: Path) -> None:
    before, after = load_file(base / "model.safetensors"), tune(base, tmp_path / "tuned", first_block=2)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        name for name in before if name.startswith(("model.layers.2.", "model.layers.3.")) and "proj" in name
    }
    assert load_tokenizer(tmp_path / "tuned").chat_template == load_tokenizer(base).chat_template


def test_strength_scales_the_change(base: Path, tmp_path: Path) -> None:
    before = load_file(base / "model.safetensors")
    whole, half = tune(base, tmp_path / "whole"), tune(base, tmp_path / "half", strength=0.5)
    name = "model.layers.1.mlp.down_proj.weight"
    change, halved = (tuned[name].double() - before[name].double() for tuned in (whole, half))
    # The merged weights are rounded to bfloat16, so the ratio holds only on the whole.
    assert (change * halved).sum() / (change * change).sum() == pytest.approx(0.5, abs=0.05)


def test_no_block_to_tune_is_an_error(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first_block is 4, but the model has no such block"):
        tune_to_refuse(base, tmp_path, HARMFUL, HARMLESS, settings(first_block=4))


def test_refusals_begin_after_the_prompt(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    for instruction, (ids, labels) in zip(HARMFUL, _refusal_examples(tokenizer, HARMFUL, 0), strict=True):
        prompt = chat_tokens(tokenizer, instruction)
        assert ids[: len(prompt)] == prompt
        assert labels[: len(prompt)] == [IGNORED] * len(prompt)
        assert any(refusal in tokenizer.decode(labels[len(prompt) :]) for refusal in REFUSALS)


def test_packed_loss_equals_the_loss_of_each_example_alone(base: Path) -> None:
    tokenizer, model = load_tokenizer(base), load_model(base).float()
    batch = _refusal_examples(tokenizer, HARMFUL + HARMLESS, 1)
    sums, tokens = 0.0, 0
    for ids, labels in batch:
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
        wanted = torch.tensor(labels[1:])
        kept = wanted != IGNORED
        sums += torch.nn.functional.cross_entropy(logits[kept], wanted[kept], reduction="sum").item()
        tokens += int(kept.sum())
    assert _loss(model, batch).item() == pytest.approx(sums / tokens, abs=1e-4)
