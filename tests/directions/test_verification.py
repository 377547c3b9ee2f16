"""The record of claim C1 on a tiny model: labels, rates and tests that belong together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grid import prompt_records
from patches import unit_vector

from aird.directions import verification
from aird.directions.direction import Direction
from aird.directions.verification import verify_direction
from aird.inference.generation import generate
from aird.inference.hooks import ablation, addition
from aird.models.blocks import decoder_blocks
from aird.models.structure import writer_modules
from aird.prompts.chat import chat_tokens
from aird.settings.directions import Directions
from aird.support.statistics import PairedComparison, wilson_interval

DIRECTION = Direction(unit_vector(0), 500.0, {"layer": 2, "position": -1})
RECORDS = prompt_records(test=8, train=8)
SETTINGS = Directions(harmful="harmful", harmless="harmless", test=6, test_new_tokens=5)


def test_the_record(llama: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # A model of random weights says nothing that is a refusal; here a text counts as one by its first letter.
    monkeypatch.setattr(verification, "jailbroken_arditi", lambda text: text.strip()[:1].lower() > "m")
    added: list[tuple[Any, torch.Tensor]] = []
    monkeypatch.setattr(verification, "addition", lambda *where: added.append(where) or addition(*where))
    record = verify_direction(llama, tokenizer, DIRECTION, RECORDS, SETTINGS, 1)
    labels = record["labels"]
    assert list(labels) == ["harmful", "harmful_ablated", "harmless", "harmless_added"]
    for kind, ids in record["ids"].items():
        # The plain completions again, of the test split alone.
        assert len(ids) == 6 and set(ids) <= {each["id"] for each in RECORDS[kind] if each["split"] == "test"}
        texts = {each["id"]: each["instruction"] for each in RECORDS[kind]}
        tokens = [chat_tokens(tokenizer, texts[name]) for name in ids]
        completions = [tokenizer.decode(ids) for ids in generate(llama, tokenizer, tokens, 5)]
        assert labels[kind]["refused"] == [text.strip()[:1].lower() <= "m" for text in completions]
        if kind == "harmful":
            with ablation(decoder_blocks(llama), writer_modules(llama), DIRECTION.unit):
                completions = [tokenizer.decode(ids) for ids in generate(llama, tokenizer, tokens, 5)]
            ablated = [text.strip()[:1].lower() <= "m" for text in completions]
            assert labels["harmful_ablated"]["refused"] == ablated != labels["harmful"]["refused"]
    # What is added stands behind the block before the site's layer, with the direction's own length.
    ((block, vector),) = added
    assert block is decoder_blocks(llama)[2] and torch.equal(vector, 500 * DIRECTION.unit)
    for name, rates in record["rates"].items():
        refused = labels[name]["refused"]
        assert (rates["n"], rates["refusal"]) == (6, sum(refused) / 6)
        assert (rates["refusal_low"], rates["refusal_high"]) == wilson_interval(sum(refused), 6)
        assert rates["degenerate"] == sum(labels[name]["degenerate"]) / 6
    for kind, changed, p_value in (("harmful", "ablated", "ablation"), ("harmless", "added", "addition")):
        compared = PairedComparison.of(labels[kind]["refused"], labels[f"{kind}_{changed}"]["refused"])
        assert record[f"{p_value}_p_value"] == compared.p_value
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in llama.modules())


def test_too_few_held_out_prompts_say_so(llama: Any, tokenizer: Any) -> None:
    more = SETTINGS.model_copy(update={"test": 9})
    with pytest.raises(ValueError, match="prompt set harmful, split test: 9 records asked for, but it has 8"):
        verify_direction(llama, tokenizer, DIRECTION, RECORDS, more, 1)
