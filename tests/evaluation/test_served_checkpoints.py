"""Checkpoints of every format in a real vLLM: the same first tokens as Transformers, and the trap of one that loads."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from patches import adapter_of, merged, random_edits
from servers import REFERENCE, SERVING, SUITE, asking, evaluate, server_at, small_vllm, write_tasks
from tiny_model import build_tiny_model, new
from transformers import AutoConfig, AutoModelForCausalLM, StableLmConfig

from aird.compression.compress import compress
from aird.compression.measure import check_stored_formats, measure
from aird.compression.recipes.awq import AWQ
from aird.compression.recipes.bitsandbytes import BitsAndBytes
from aird.compression.recipes.fp8 import FP8
from aird.compression.recipes.kv_cache import KeyValueCache
from aird.compression.recipes.round_to_nearest import RoundToNearest
from aird.evaluation.engine import ServerSettings
from aird.evaluation.engines.transformers import TransformersClient
from aird.evaluation.engines.vllm import Vllm, detect_accelerator
from aird.evaluation.parity import ParityError, check_parity, first_token_logprobs
from aird.evaluation.questions import Asked, answer_likelihoods, suite_questions
from aird.evaluation.suite_run import prepare_checkpoint
from aird.evaluation.tasks import load_tasks, run_tasks
from aird.inference.generation import generate
from aird.models.dense import rounds_activations
from aird.models.loading import load_model, load_tokenizer
from aird.patching.edits import Edit
from aird.prompts.sets import CLASSES
from aird.settings.compressions import CalibrationSettings
from aird.support.files import read_json, write_json

MODULES = ("model.layers.0.self_attn.o_proj", "model.layers.2.mlp.down_proj")
TOLERANCE = 0.1  # nats; kernels round activations differently, a wrongly read checkpoint is nats away
TOKENS = 4
PROMPTS = [[1, 5 + 11 * number % 200, 30 + number, 2, 60, 61 + number % 5] for number in range(8)]
SETTINGS = ServerSettings(256, threads=1, dtype="float32")
RECIPES = {
    "w4a16": RoundToNearest(weight_bits=4, group_size=32),
    "w8a8": RoundToNearest(weight_bits=8, activation_bits=8),
    "awq": AWQ(group_size=32, calibration=CalibrationSettings(prompt_set="harmless", count=len(PROMPTS))),
    "fp8": FP8(),
    "nf4": BitsAndBytes(variant="nf4"),
    "int8": BitsAndBytes(variant="int8"),
}


def edits() -> list[Edit]:
    return random_edits(MODULES, 0.4)


@torch.no_grad()
def greedy(model: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    """Return the first tokens by Transformers, and how far each was ahead of the second (nats)."""
    tokens, margins = list(prompt), []
    for _ in range(TOKENS):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
        first, second = logits.topk(2).values.tolist()
        margins.append(first - second)
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :], margins


@pytest.mark.parametrize("name", RECIPES)
def test_merged_checkpoint_gives_the_same_first_tokens(
    name: str, original: Path, vllm_python: Path, tmp_path: Path
) -> None:
    """Base and adapter in Transformers, the merged checkpoint in Transformers, and the merged one in vLLM agree."""
    settings = RECIPES[name]
    base = tmp_path / "base"
    compress(original, base, settings, PROMPTS if settings.needs_calibration else None)
    checkpoint = merged(base, edits(), tmp_path / "merged")
    adapter = adapter_of(edits(), tmp_path / "adapter")
    before, after = measure(base), measure(checkpoint)
    check_stored_formats(after)
    changed = {module for module in after["matrices"] if after["matrices"][module] != before["matrices"][module]}
    assert changed == set(MODULES)
    assert all(after["matrices"][module]["stored_format"] == "dense" for module in MODULES)
    assert after["other_tensors"] == before["other_tensors"]

    model = load_model(checkpoint, dtype=torch.float32)
    expected = first_token_logprobs(model, PROMPTS)
    patched = first_token_logprobs(load_model(base, adapter, dtype=torch.float32), PROMPTS)
    plain = first_token_logprobs(load_model(base, dtype=torch.float32), PROMPTS)
    moved, rounding = (
        max(float((a - b).abs().max()) for a, b in zip(expected, other, strict=True)) for other in (plain, patched)
    )
    # The merged matrix is rounded to the stored type once; the edit itself moves more. Where the base rounds
    # activations too, the edited modules no longer do once they are merged: of eight-bit floats with three
    # bits of mantissa that is the larger part, and why FP8 tokens come to differ from those of base and adapter.
    assert moved > 2 * TOLERANCE
    assert rounding < (moved if rounds_activations(base) else TOLERANCE)

    engine = small_vllm(vllm_python)
    served, _, _ = prepare_checkpoint(checkpoint, None, engine, new(tmp_path / "scratch"))
    with engine.serve(served, SETTINGS, tmp_path / "log") as client:
        # LLM.int8's activations are not rounded in the dense copy that vLLM serves.
        check_parity(client, PROMPTS, expected, 2 * TOLERANCE if name == "int8" else TOLERANCE)
        completions = client.complete(PROMPTS, TOKENS)
    if name == "w8a8" and detect_accelerator() == "cpu":
        # The kernel of programs/vllm_server.py has come to the engine's process.
        assert "Selected Int8InEveryType for" in (tmp_path / "log").read_text(encoding="utf-8")
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        tokens, margins = greedy(model, prompt)
        for number, token in enumerate(completion.token_ids):
            if token != tokens[number]:
                # Eight-bit activations are rounded token by token: a near tie may fall the other way.
                assert margins[number] < TOLERANCE, (prompt, number, margins)
                break


def test_adapter_and_merged_checkpoint_give_the_same_first_tokens(
    original: Path, vllm_python: Path, tmp_path: Path
) -> None:
    """Both forms in vLLM, with all that a suite measures, in the type that the checkpoint is computed in.

    Beside dense weights the tiny run serves its adapter.
    """
    base = tmp_path / "base"
    compress(original, base, RECIPES["w4a16"], None)
    adapter = adapter_of(edits(), tmp_path / "adapter")
    records = {
        kind: [{"id": f"{kind}-{n}", "instruction": f"Draw {n} {kind} hats."} for n in range(20)] for kind in CLASSES
    }
    serving = SERVING.model_copy(update={"parity_prompts": 8})
    completions, utility = evaluate(
        small_vllm(vllm_python), base, tmp_path, adapter, asking(serve="both"), records=records, serving=serving
    )
    assert utility["served_as"] == "adapter"
    first = utility["merged"]["first_tokens"]
    assert first["prompts"] == 40 and first["upper_quartile_difference"] < TOLERANCE
    for parity in (utility["parity"], utility["merged"]["parity"]):
        assert parity["upper_quartile_difference"] < TOLERANCE
    assert utility["parity"]["distance_to_patched"] < 0.5 * utility["parity"]["distance_to_unpatched"]
    assert sum(record["completion"] == record["merged"]["completion"] for record in completions) > 20
    # The perplexity is of the adapter too.
    local = TransformersClient(load_model(base, adapter), load_tokenizer(base))
    asked = suite_questions(load_tokenizer(base), Asked(SUITE, records, 0, REFERENCE), likelihoods=True)
    nats = [
        answer["negative_log_likelihood"] / answer["tokens"]
        for answer in (*utility["answers"], *answer_likelihoods(local, asked.answers or []))
    ]
    assert nats[0] == pytest.approx(nats[1], abs=TOLERANCE)


def test_beside_eight_bit_activations_a_processor_gets_the_adapter_merged(original: Path, tmp_path: Path) -> None:
    """vLLM's kernel for them leaves the LoRA no weights to look at; a GPU's does."""
    base, scratch = tmp_path / "base", new(tmp_path / "scratch")
    compress(original, base, RECIPES["w8a8"], None)
    adapter = adapter_of(edits(), tmp_path / "adapter")
    on_cpu = detect_accelerator() == "cpu"
    assert Vllm(None).able(base).adapters == (not on_cpu) and Vllm(None).able(original).adapters
    served, left, _ = prepare_checkpoint(base, adapter, Vllm(None), scratch)
    assert (served == scratch / "merged", left is None) == (on_cpu, on_cpu)


def test_on_a_processor_a_mixture_gets_any_adapter_merged(vllm_python: Path, tmp_path: Path) -> None:
    """With one beside it, also of attention alone, vLLM starts there and ends at the first request."""
    base = build_tiny_model(tmp_path / "base", family="mixtral")
    adapter = adapter_of(edits()[:1], tmp_path / "adapter")
    _, utility = evaluate(small_vllm(vllm_python), base, tmp_path, adapter, reference=[])
    assert utility["served_as"] == ("merged" if detect_accelerator() == "cpu" else "adapter")
    assert utility["parity"]["upper_quartile_difference"] < TOLERANCE


def test_a_model_that_vllm_has_no_lora_for_is_served_merged(vllm_python: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    llama = AutoConfig.from_pretrained(build_tiny_model(base))
    shared = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    config = StableLmConfig(
        **{name: getattr(llama, name) for name in shared.split()},
        max_position_embeddings=2048,
        bos_token_id=llama.bos_token_id,
        eos_token_id=llama.eos_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(base)
    adapter = adapter_of(edits(), tmp_path / "adapter")
    _, utility = evaluate(small_vllm(vllm_python), base, tmp_path, adapter, reference=[])
    assert utility["served_as"] == "merged" and utility["parity"]["upper_quartile_difference"] < TOLERANCE


def test_a_checkpoints_own_generation_settings_are_not_followed(
    original: Path, vllm_python: Path, tmp_path: Path
) -> None:
    """Neither by completions, nor by a task of lm-eval that generates, which says nothing about penalties.

    A task of lm-eval that scores given texts has the log-probabilities that the server tells.
    """
    folder = Path(shutil.copytree(original, tmp_path / "own"))
    own = {"do_sample": True, "temperature": 1.5, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.8}
    path = folder / "generation_config.json"
    write_json(path, read_json(path) | own)
    tokenizer, model = load_tokenizer(folder), load_model(folder, dtype=torch.float32)
    texts = [f"Explain how a bicycle pump works, step {number}" for number in range(4)]
    asked = [tokenizer(text)["input_ids"] for text in texts]
    expected = [generate(model, tokenizer, [prompt], 12)[0] for prompt in asked]
    penalised = model.generate(torch.tensor(asked[:1]), max_new_tokens=12, do_sample=False, repetition_penalty=1.8)
    assert penalised[0, len(asked[0]) :].tolist() != expected[0]
    answers = [tokenizer.decode(ids) for ids in expected]
    rows = [
        {"query": text, "word": "to a child", "answer": answer} for text, answer in zip(texts, answers, strict=True)
    ]
    write_tasks(tmp_path / "tasks", rows, 12)
    suite = asking(tasks=["told", "scored"], task_folder=str(tmp_path / "tasks"))
    whole = [tokenizer(f"{text} to a child")["input_ids"] for text in texts]
    with small_vllm(vllm_python).serve(folder, SETTINGS, tmp_path / "log") as client:
        for row, ids in zip(client.complete(asked, 12), expected, strict=True):
            assert list(row.token_ids[: len(ids)]) == ids
        tasks, questions, _ = run_tasks(client, folder, suite, load_tasks(suite), 256)
        logprobs = client.token_logprobs(whole)
    scores = [sum(v for v in row[len(ids) :] if v) for row, ids in zip(logprobs, asked, strict=True)]
    assert questions["scored"]["perplexity"] == pytest.approx(scores, abs=1e-3)
    assert tasks["told"]["exact_match"] == 1


def test_a_patched_checkpoint_at_a_vllm_server_of_the_users(original: Path, vllm_python: Path, tmp_path: Path) -> None:
    """The address serves the merged checkpoint, and Transformers checks that it does."""
    checkpoint = merged(original, edits(), tmp_path / "merged")
    adapter = adapter_of(edits(), tmp_path / "adapter")
    with small_vllm(vllm_python).serve(checkpoint, SETTINGS, tmp_path / "server.log") as client:
        engine = server_at(client.server.address)
        _, utility = evaluate(engine, original, tmp_path, adapter, reference=[])
        with pytest.raises(ParityError):
            evaluate(engine, original, tmp_path, reference=[])
    assert utility["served_as"] == "merged" and utility["engine"]["name"] == "vLLM"
    assert utility["parity"]["distance_to_patched"] < TOLERANCE < utility["parity"]["distance_to_unpatched"]


def test_trap_vllm_serves_a_broken_checkpoint_without_an_error(
    original: Path, vllm_python: Path, tmp_path: Path
) -> None:
    """W8A8, loaded, edited and saved: Transformers and vLLM load it, vLLM's answers are nonsense; both checks see it."""
    base, broken = tmp_path / "base", tmp_path / "broken"
    compress(original, base, RECIPES["w8a8"], None)
    sound = first_token_logprobs(load_model(base, dtype=torch.float32), PROMPTS)
    model = load_model(base)
    first_token_logprobs(model, PROMPTS[:1])  # from now on the matrices are dense in memory
    with torch.no_grad():
        model.get_submodule("model.layers.2.mlp.down_proj").weight.mul_(1.01)
    model.save_pretrained(broken)
    for path in base.glob("*.json"):
        if path.name not in ("config.json", "model.safetensors.index.json"):
            (broken / path.name).write_bytes(path.read_bytes())
    (broken / "chat_template.jinja").write_bytes((base / "chat_template.jinja").read_bytes())
    with pytest.raises(ValueError, match="disagree with config.json"):
        check_stored_formats(measure(broken))
    with small_vllm(vllm_python).serve(broken, SETTINGS, tmp_path / "log") as client:
        with pytest.raises(ParityError, match="vLLM and Transformers disagree"):
            check_parity(client, PROMPTS, sound, 0.25)


@pytest.mark.parametrize("dtype", ["fp8", "fp8_e5m2"])
def test_a_quantised_cache_of_the_unchanged_weights(
    dtype: str, original: Path, vllm_python: Path, tmp_path: Path
) -> None:
    """It moves first tokens, which shows that the server has it, and less than a checkpoint that is loaded wrongly."""
    compress(original, tmp_path / "cache", KeyValueCache(dtype=dtype), None)
    expected = first_token_logprobs(load_model(original, dtype=torch.float32), PROMPTS)
    settings = dataclasses.replace(SETTINGS, key_value_cache_dtype=dtype)
    engine = small_vllm(vllm_python)
    engine.check(tmp_path / "cache", settings)
    with engine.serve(tmp_path / "cache", settings, tmp_path / "log") as client:
        parity = check_parity(client, PROMPTS, expected, 4 * TOLERANCE)
    assert parity["largest_difference"] > 0.01
