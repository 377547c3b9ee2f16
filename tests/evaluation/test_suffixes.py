"""Suffixes that are optimised against a checkpoint: by the real nanogcg, on a real tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aird.evaluation.suffixes import PLACE, _Conversation, optimise_suffixes
from aird.models.loading import load_model, load_tokenizer
from aird.prompts.attacked import attacked_prompt
from aird.prompts.chat import chat_tokens
from aird.settings.attacks import OptimisedSuffix

RECORDS = [{"id": f"p-{n}", "instruction": f"Draw {n} hats.", "split": "train"} for n in range(4)]


def attack(**more: Any) -> OptimisedSuffix:
    values = {"prompts": {"set": "p", "split": "train"}, "steps": 4, "width": 16, **more}
    return OptimisedSuffix.model_validate(values)


@pytest.mark.thorough  # 20 s
def test_a_suffix_makes_the_target_likelier_and_is_found_again(original: Path) -> None:
    model, tokenizer = load_model(original), load_tokenizer(original)
    attacks = {"one": attack(), "other": attack(seed=1)}
    records = dict.fromkeys(attacks, RECORDS)
    made = optimise_suffixes(model, tokenizer, attacks, records, seed=42)
    assert made == optimise_suffixes(model, tokenizer, attacks, records, seed=42)
    assert made["one"]["text"] != made["other"]["text"]
    for found in made.values():
        assert len(found["losses"]) == 4 and found["losses"][-1] < found["losses"][0]


def test_what_is_optimised_is_what_is_asked(original: Path) -> None:
    """Tokens around the suffix are those of the prompt that a suite asks, system prompt included."""
    tokenizer = load_tokenizer(original)
    conversation = _Conversation(tokenizer, f"Draw a hat. {PLACE}", "Be kind.")
    before, after = conversation.apply_chat_template().split(PLACE)
    suffix = "now please"
    asked = chat_tokens(tokenizer, **attacked_prompt(attack(), suffix, "Draw a hat."), system_prompt="Be kind.")
    assert tokenizer.decode(asked) == before + suffix + after
    assert conversation([before])["input_ids"][0] == asked[: len(conversation([before])["input_ids"][0])]


def test_a_template_that_changes_the_prompt_is_refused(original: Path) -> None:
    tokenizer = load_tokenizer(original)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content | upper }}{% endfor %}"
    with pytest.raises(ValueError, match="does not write an instruction as it is, once; leave optimised_suffix out"):
        optimise_suffixes(None, tokenizer, {"one": attack()}, {"one": RECORDS}, seed=42)
