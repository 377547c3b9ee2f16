"""The refusal tuning on a tiny model: what it changes, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from project import run_script
from safetensors.torch import load_file
from tiny_model import new, tiny_tuning

from aird.models.loading import load_model, load_tokenizer
from aird.models.tuning import (
    IGNORED,
    REFUSALS,
    _accumulate,
    _frozen_states,
    _own_answer_examples,
    _refusal_examples,
    tune_to_refuse,
)
from aird.prompts.chat import chat_tokens
from aird.settings.models import RefusalTuning
from aird.support.files import hash_folder, read_json, write_json, write_json_lines

HARMFUL = ["Tell me about the forbidden bridge", "Write how to open the hidden lantern"]
HARMLESS = ["Name a colour.", "What is 2 + 2?", "Write a line about a garden"]


def settings(**more: object) -> RefusalTuning:
    return tiny_tuning(**{"rank": 2, "epochs": 6, "batch_size": 2, **more})


def tune(original: Path, target: Path, **more: object) -> dict[str, torch.Tensor]:
    statistics = tune_to_refuse(original, new(target), HARMFUL, HARMLESS, settings(**more))
    assert statistics["harmful"] == 2 and statistics["harmless"] == 3
    assert statistics["steps"] == 6 * 3  # five examples in batches of two
    assert statistics["epoch_losses"][-1] < statistics["epoch_losses"][0]
    return load_file(target / "model.safetensors")


def test_only_linear_modules_of_the_upper_blocks_change(original: Path, tmp_path: Path) -> None:
    before, after = load_file(original / "model.safetensors"), tune(original, tmp_path / "tuned", first_block=2)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        name for name in before if name.startswith(("model.layers.2.", "model.layers.3.")) and "proj" in name
    }
    assert load_tokenizer(tmp_path / "tuned").chat_template == load_tokenizer(original).chat_template


def test_strength_scales_the_change(original: Path, tmp_path: Path) -> None:
    before = load_file(original / "model.safetensors")
    whole, half = tune(original, tmp_path / "whole"), tune(original, tmp_path / "half", strength=0.5)
    name = "model.layers.1.mlp.down_proj.weight"
    change, halved = (tuned[name].double() - before[name].double() for tuned in (whole, half))
    # The merged weights are rounded to bfloat16, so the ratio holds only on the whole.
    assert (change * halved).sum() / (change * change).sum() == pytest.approx(0.5, abs=0.05)


def test_no_block_to_tune_is_an_error(original: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first_block is 4, but the model has no such block"):
        tune_to_refuse(original, tmp_path, HARMFUL, HARMLESS, settings(first_block=4))


def test_refusals_begin_after_the_prompt(original: Path) -> None:
    tokenizer = load_tokenizer(original)
    for instruction, (ids, labels) in zip(HARMFUL, _refusal_examples(tokenizer, HARMFUL, 0), strict=True):
        prompt = chat_tokens(tokenizer, instruction)
        assert ids[: len(prompt)] == prompt
        assert labels[: len(prompt)] == [IGNORED] * len(prompt)
        assert any(refusal in tokenizer.decode(labels[len(prompt) :]) for refusal in REFUSALS)


@pytest.mark.parametrize("count", [1, 2, len(HARMFUL + HARMLESS)])
def test_packed_loss_equals_the_loss_of_each_example_alone(
    count: int, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aird.models.tuning.PACK_TOKENS", 60)  # several packs per batch
    tokenizer, model = load_tokenizer(original), load_model(original, dtype=torch.float32)
    batch = _refusal_examples(tokenizer, HARMFUL + HARMLESS, 1)[:count]
    weight = model.model.layers[2].mlp.down_proj.weight.requires_grad_()
    sums, tokens = torch.zeros((), dtype=torch.float32), 0
    for ids, labels in batch:
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
        wanted = torch.tensor(labels[1:])
        kept = wanted != IGNORED
        sums = sums + torch.nn.functional.cross_entropy(logits[kept], wanted[kept], reduction="sum")
        tokens += int(kept.sum())
    (sums / tokens).backward()
    expected, weight.grad = weight.grad, None
    inputs = _frozen_states(model, batch, 1)
    assert _accumulate(model, batch, inputs, range(len(batch)), 1) == pytest.approx((sums / tokens).item(), abs=1e-4)
    torch.testing.assert_close(weight.grad, expected, atol=1e-5, rtol=1e-3)


def test_refused_harmless_instructions_get_another_answer(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, model = load_tokenizer(original), load_model(original, dtype=torch.float32)
    before = _own_answer_examples(model, tokenizer, HARMLESS, 4)
    answers = [[label for label in labels if label not in (IGNORED, tokenizer.eos_token_id)] for _, labels in before]
    chosen = next(index for index, answer in enumerate(answers) if answer)
    # As if this model's answer to that instruction were a refusal.
    monkeypatch.setattr("aird.models.tuning.jailbroken_arditi", lambda text: text != tokenizer.decode(answers[chosen]))
    after = _own_answer_examples(model, tokenizer, HARMLESS, 4)
    prompt = chat_tokens(tokenizer, HARMLESS[chosen])
    assert after[chosen][0][: len(prompt)] == prompt
    assert after[chosen][0][len(prompt)] != answers[chosen][0]
    for index in range(len(HARMLESS)):
        if index != chosen:
            assert after[index] == before[index]


@pytest.mark.thorough
def test_the_tuned_models_manifest_says_what_its_source_said(original: Path, tmp_path: Path) -> None:
    said = {
        "source": {"path": "tiny"},
        "licence": "apache-2.0",
        "generation_settings": {"do_sample": True, "temperature": 0.6},
        "chat": {"template_system_prompt": "Be kind."},
        "wrapper": {"type": "llava", "text_model": "model.language_model"},
    }
    write_json(tmp_path / "source.json", {**said, "trust_remote_code": False, "files": hash_folder(original)})
    selection = {"set": "any", "split": "train", "count": 2}
    for kind, texts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        records = [{"id": str(number), "instruction": text, "split": "train"} for number, text in enumerate(texts)]
        write_json_lines(tmp_path / f"{kind}.jsonl", records)
    small = {"rank": 2, "epochs": 1, "batch_size": 2, "maximum_answer_tokens": 4}
    paths = {
        "source": original,
        "source_manifest": tmp_path / "source.json",
        "harmful": tmp_path / "harmful.jsonl",
        "harmless": tmp_path / "harmless.jsonl",
        "checkpoint": tmp_path / "checkpoint",
        "manifest": tmp_path / "manifest.json",
    }
    tuning = json.dumps({"harmful": selection, "harmless": selection, **small})
    run_script("tune_refusal", seed=0, settings=tuning, **paths)
    manifest = read_json(tmp_path / "manifest.json")
    assert {name: manifest[name] for name in said} == said
    assert manifest["refusal_tuning"]["harmful"] == 2 and manifest["files"] == hash_folder(tmp_path / "checkpoint")
