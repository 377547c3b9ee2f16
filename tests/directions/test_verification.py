"""The record of claim C1 on a tiny model: labels, rates and tests that belong together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aird.directions import verification
from aird.directions.direction import Direction
from aird.directions.verification import verify_direction
from aird.inference.generation import generate
from aird.prompts.chat import chat_tokens
from aird.settings.directions import Directions
from aird.support.statistics import mcnemar, wilson_interval

SETTINGS = Directions(harmful="harmful", harmless="harmless", test=6, test_new_tokens=5)


@pytest.fixture
def records() -> dict[str, list[dict[str, Any]]]:
    return {
        kind: [
            {"id": f"{kind}-{number}", "instruction": f"{kind} question {number}", "split": split}
            for split in ("test", "train")
            for number in range(8)
        ]
        for kind in ("harmful", "harmless")
    }


@pytest.fixture
def direction() -> Direction:
    unit = torch.randn(128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Direction(unit / unit.norm(), 500.0, {"layer": 2, "position": -1})


def test_the_record(
    llama: Any, tokenizer: Any, records: Any, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A model of random weights says nothing that is a refusal; here a text counts as one by its first letter.
    monkeypatch.setattr(verification, "jailbroken_arditi", lambda text: text.strip()[:1].lower() > "m")
    record = verify_direction(llama, tokenizer, direction, records, SETTINGS, 1)
    labels = record["labels"]
    assert list(labels) == ["harmful", "harmful_ablated", "harmless", "harmless_added"]
    for kind, ids in record["ids"].items():
        # The plain completions again, of the test split alone.
        assert len(ids) == 6 and set(ids) <= {each["id"] for each in records[kind] if each["split"] == "test"}
        texts = {each["id"]: each["instruction"] for each in records[kind]}
        tokens = [chat_tokens(tokenizer, texts[name]) for name in ids]
        completions = [tokenizer.decode(ids) for ids in generate(llama, tokenizer, tokens, 5)]
        assert labels[kind]["refused"] == [text.strip()[:1].lower() <= "m" for text in completions]
    for name, rates in record["rates"].items():
        refused = labels[name]["refused"]
        assert (rates["n"], rates["refusal"]) == (6, sum(refused) / 6)
        assert (rates["refusal_low"], rates["refusal_high"]) == wilson_interval(sum(refused), 6)
        assert rates["degenerate"] == sum(labels[name]["degenerate"]) / 6
    assert record["ablation_p_value"] == mcnemar(labels["harmful"]["refused"], labels["harmful_ablated"]["refused"])[2]
    assert record["addition_p_value"] == mcnemar(labels["harmless"]["refused"], labels["harmless_added"]["refused"])[2]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in llama.modules())


def test_too_few_held_out_prompts_say_so(llama: Any, tokenizer: Any, records: Any, direction: Direction) -> None:
    more = SETTINGS.model_copy(update={"test": 9})
    with pytest.raises(ValueError, match="prompt set harmful, split test: 9 records asked for, but it has 8"):
        verify_direction(llama, tokenizer, direction, records, more, 1)
