"""Suffixes that are optimised against a checkpoint: by the real nanogcg, on a real tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aird.evaluation.attacks.optimised_suffix import PLACE, OptimisedSuffix, _Conversation, optimise, put_on
from aird.models.loading import load_model, load_tokenizer
from aird.prompts.chat import chat_tokens

RECORDS = [{"id": f"p-{n}", "instruction": f"Draw {n} hats.", "split": "train"} for n in range(4)]


def attack(**more: Any) -> OptimisedSuffix:
    return OptimisedSuffix.model_validate({"prompts": {"set": "p"}, "steps": 4, "width": 16, **more})


@pytest.mark.thorough  # 20 s
def test_a_suffix_makes_the_target_likelier_and_is_found_again(original: Path) -> None:
    model, tokenizer = load_model(original), load_tokenizer(original)
    one, again, other = (optimise(model, tokenizer, attack(seed=seed), RECORDS, None) for seed in (0, 0, 1))
    assert one == again and one["text"] != other["text"]
    for found in (one, other):
        assert len(found["losses"]) == 4 and found["losses"][-1] < found["losses"][0]


def test_what_is_optimised_is_what_is_asked(original: Path) -> None:
    """Tokens around the suffix are those of the prompt that a suite asks, system prompt included."""
    tokenizer = load_tokenizer(original)
    conversation = _Conversation(tokenizer, f"Draw a hat. {PLACE}", "Be kind.")
    before, after = conversation.apply_chat_template().split(PLACE)
    suffix = "now please"
    asked = chat_tokens(tokenizer, put_on(suffix, "Draw a hat.").instruction, system_prompt="Be kind.")
    assert tokenizer.decode(asked) == before + suffix + after
    assert conversation([before])["input_ids"][0] == asked[: len(conversation([before])["input_ids"][0])]


def test_a_template_that_changes_the_prompt_is_refused(original: Path) -> None:
    tokenizer, model = load_tokenizer(original), load_model(original)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content | upper }}{% endfor %}"
    with pytest.raises(ValueError, match="does not write an instruction as it is, once; leave optimised_suffix out"):
        optimise(model, tokenizer, attack(), RECORDS, None)
