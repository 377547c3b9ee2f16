"""Batched generation with a shared start against one prompt at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.families import tiny_family
from tiny_model import SMALL, random_model

import aird.inference.generation
from aird.inference.generation import _prompt_cache, generate, honours_padding
from aird.inference.hooks import addition
from aird.models.generation_settings import own_generation_settings
from aird.models.loading import load_model, load_tokenizer
from aird.prompts.chat import chat_tokens

INSTRUCTIONS = ["How do I bake bread?", "Say hi.", "Explain how a bicycle pump works, step by step.", "Why?"]


@pytest.fixture(params=["llama", "qwen2"])
def loaded(tiny_folder: Callable[[str], Path], request: pytest.FixtureRequest) -> tuple[Any, Any, list[list[int]]]:
    folder = tiny_folder(request.param)
    tokenizer = load_tokenizer(folder)
    # In float32: random weights make near ties, which bfloat16 decides by the shape of a batch.
    return load_model(folder, dtype=torch.float32), tokenizer, [chat_tokens(tokenizer, text) for text in INSTRUCTIONS]


@torch.no_grad()
def one_by_one(model: Any, prompt: list[int], count: int, stops: set[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


def stops_of(model: Any) -> set[int]:
    stop = model.generation_config.eos_token_id
    return set(stop if isinstance(stop, list) else [stop])


def test_a_batch_equals_greedy_decoding_one_by_one(loaded: tuple[Any, Any, list[list[int]]]) -> None:
    model, tokenizer, prompts = loaded
    assert _prompt_cache(model, prompts) is not None
    expected = [one_by_one(model, prompt, 8, stops_of(model)) for prompt in prompts]
    assert generate(model, tokenizer, prompts, 8, batch_size=3) == expected
    assert len({tuple(ids) for ids in expected}) > 1


def test_padded_prompts_do_as_well_where_packs_do_not(
    loaded: tuple[Any, Any, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, prompts = loaded
    expected = generate(model, tokenizer, prompts, 8)
    monkeypatch.setattr(aird.inference.generation, "honours_packs", lambda *_: False)
    assert _prompt_cache(model, prompts) is None
    assert generate(model, tokenizer, prompts, 8) == expected
    # A prompt of one token has nothing to keep.
    assert len(generate(model, tokenizer, [[5], [6]], 2)) == 2


def test_an_observer_sees_the_logits_of_every_new_token(loaded: tuple[Any, Any, list[list[int]]]) -> None:
    model, tokenizer, prompts = loaded
    seen: dict[int, list[int]] = {index: [] for index in range(len(prompts))}

    def observe(rows: Any, step: int, logits: torch.Tensor) -> None:
        assert logits.dtype == torch.float32
        for index, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
            assert len(seen[index]) == step
            seen[index].append(token)

    for index, reply in enumerate(generate(model, tokenizer, prompts, 5, batch_size=3, observe=observe)):
        assert reply and seen[index][: len(reply)] == reply


def test_hooks_act_on_the_shared_start_too(loaded: tuple[Any, Any, list[list[int]]]) -> None:
    model, tokenizer, prompts = loaded
    vector = 4 * torch.randn(128, generator=torch.Generator().manual_seed(3))
    with addition(model.model.layers[1], vector):
        expected = [one_by_one(model, prompt, 6, stops_of(model)) for prompt in prompts]
        assert generate(model, tokenizer, prompts, 6) == expected
    assert generate(model, tokenizer, prompts, 6) != expected


def test_suppressed_tokens_do_not_begin_a_continuation(loaded: tuple[Any, Any, list[list[int]]]) -> None:
    model, tokenizer, prompts = loaded
    first = {ids[0] for ids in generate(model, tokenizer, prompts, 4) if ids}
    again = generate(model, tokenizer, prompts, 4, begin_suppress_tokens=sorted(first))
    assert first and not first & {ids[0] for ids in again if ids}


# As checkpoints bring them; each alone changes the replies of these models, or forbids or forces one.
OWN_SETTINGS: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "do_sample": True,
    "top_k": 5,
    "temperature": 1.5,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 8,
    "forced_eos_token_id": 7,
    "exponential_decay_length_penalty": [1, 9.0],
    "sequence_bias": [[[9], 99.0]],
}


@pytest.mark.parametrize(
    "names", [["repetition_penalty", "do_sample", "top_k"], list(OWN_SETTINGS)], ids=["usual", "all"]
)
def test_a_checkpoints_own_generation_settings_are_not_followed(
    names: list[str], original: Path, tmp_path: Path
) -> None:
    source, folder = original, tmp_path / "own"
    shutil.copytree(source, folder)
    path = folder / "generation_config.json"
    own = {name: OWN_SETTINGS[name] for name in names}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    assert own_generation_settings(folder).items() >= own.items()
    tokenizer = load_tokenizer(folder)
    prompts = [chat_tokens(tokenizer, text) for text in INSTRUCTIONS]
    plain, model = (load_model(each, dtype=torch.float32) for each in (source, folder))
    assert generate(model, tokenizer, prompts, 12) == generate(plain, tokenizer, prompts, 12)
    model.save_pretrained(tmp_path / "saved")  # what the checkpoint says stays its own
    assert own_generation_settings(tmp_path / "saved") == own_generation_settings(folder)


def test_a_text_ends_where_the_tokenizer_ends_it_too(loaded: tuple[Any, Any, list[list[int]]]) -> None:
    """As vLLM does, also where the generation settings name another token."""
    model, tokenizer, prompts = loaded
    (reply,) = generate(model, tokenizer, prompts[:1], 8)
    assert len(reply) > 2
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(reply[2])
    assert generate(model, tokenizer, prompts[:1], 8) == [reply[: reply.index(reply[2])]]


def test_one_prompt_and_equal_prompts(loaded: tuple[Any, Any, list[list[int]]]) -> None:
    model, tokenizer, prompts = loaded
    alone = generate(model, tokenizer, prompts[:1], 5)
    assert generate(model, tokenizer, [prompts[0]] * 3, 5) == alone * 3


# What is special: a sliding window, windows in every other block, other names and biases, keys wider than values,
# no attention at all, a state that takes up padding too, so that prompts run one by one. The second value says
# whether packs and a plain cache give the prompts' keys and values.
ARCHITECTURES = {
    "mistral": ({"sliding_window": 8, "head_dim": 8}, False),
    "gemma2": ({"sliding_window": 8, "head_dim": 8}, False),
    "gpt_neox": ({}, True),
    "deepseek_v3": (
        {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
        | {"num_key_value_heads": 4, "first_k_dense_replace": 4},
        True,
    ),
    "mamba": ({}, False),
    "recurrent_gemma": ({"attention_window_size": 16, "lru_width": 32, "num_key_value_heads": 1}, False),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures(name: str, tokenizer: Any) -> None:
    extra, cached = ARCHITECTURES[name]
    model = random_model(name, **SMALL | extra)
    model.generation_config.eos_token_id = 2
    generator = torch.Generator().manual_seed(0)
    prompts = [[5, 6, 7, *torch.randint(3, 90, (own,), generator=generator).tolist()] for own in (4, 9, 17, 2, 25)]
    assert (_prompt_cache(model, prompts) is not None) == cached
    expected = [one_by_one(model, prompt, 8, {2}) for prompt in prompts]
    assert generate(model, tokenizer, prompts, 8, batch_size=3) == expected
    assert len({tuple(ids) for ids in expected}) > 1


def test_what_is_proven_of_padding_is_not_asked_again(loaded: tuple[Any, Any, list[list[int]]]) -> None:
    """Shorter prompts, less padding and fewer tokens cost nothing; a longer continuation does."""
    model, _, prompts = loaded
    lengths: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, inputs: lengths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    assert honours_padding(model, prompts, 8, 0)
    assert max(lengths) > max(map(len, prompts)) + 7  # where the continuation of the longest ends
    lengths.clear()
    assert honours_padding(model, sorted(prompts, key=len)[1:], 8, 0) and honours_padding(model, prompts, 7, 0)
    assert not lengths
    assert honours_padding(model, prompts, 9, 0) and lengths


def test_a_model_whose_cache_is_wrong_is_refused() -> None:
    """Moshi's of Transformers, behind its window: one by one is no way out."""
    model = tiny_family("moshi")
    short, long = ([list(range(3, 3 + count)) for count in counts] for counts in ((3, 6), (20, 25)))
    assert honours_padding(model, short, 4, 0)
    with pytest.raises(ValueError, match=r"does not generate rightly with this MoshiForCausalLM.*of 25 tokens"):
        honours_padding(model, long, 4, 0)
