"""What the benchmarks run on: a model, its candidate directions and its prompts, in two sizes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aird.directions.activation_cache import load_cache
from aird.directions.activations import capture
from aird.directions.candidates import difference_in_means
from aird.models.loading import load_model, load_tokenizer
from aird.prompts.chat import chat_tokens
from aird.prompts.sets import CLASSES
from aird.settings.directions import Directions
from aird.support.files import read_json, read_json_lines
from aird.support.processor import follow

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
MODEL = "smollm2-135m-refusal"  # of config.yaml


@dataclass(frozen=True)
class Workload:
    """One size of what is measured.

    Attributes:
        name: of the size.
        model: a causal language model in evaluation mode.
        candidates: [L, P, d_model] float64.
        harmful, harmless: token ids of validation prompts.
        train: token ids of the prompts that activations are captured on.
        refusal_tokens: ids that make the refusal score.
        settings: filters.
    """

    name: str
    model: Any
    candidates: torch.Tensor
    harmful: list[list[int]]
    harmless: list[list[int]]
    train: list[list[int]]
    refusal_tokens: list[int]
    settings: Directions


def checkpoint() -> Path:
    """Return the embedded model's checkpoint, made by the workflow's own rules with all that the benchmarks read."""
    wanted = [RESULTS / "directions" / MODEL / "original" / "direction.json"]
    if not all(path.exists() for path in wanted):
        command = [sys.executable, "-m", "snakemake", "--cores", "all", "--quiet", "all", "--"]
        subprocess.run([*command, *(str(path.relative_to(ROOT)) for path in wanted)], cwd=ROOT, check=True)
    follow(read_json(RESULTS / "environments" / "arithmetic.json"))
    return RESULTS / "models" / MODEL / "original" / "checkpoint"


def embedded() -> Workload:
    """Return the embedded model with its own candidates and prompts."""
    folder = checkpoint()
    tokenizer = load_tokenizer(folder)
    cache = load_cache(RESULTS / "activations" / MODEL / "original.safetensors")
    tokens = {(kind, split): _chat(tokenizer, kind, split) for kind in CLASSES for split in ("train", "validation")}
    kept = {}
    for kind in CLASSES:
        indices, _ = cache.groups[kind, "validation"].kept(kind == "harmful")
        kept[kind] = [tokens[kind, "validation"][index] for index in indices]
    return Workload(
        name="135M",
        model=load_model(folder),
        candidates=cache.candidates,
        harmful=kept["harmful"],
        harmless=kept["harmless"],
        train=tokens["harmful", "train"] + tokens["harmless", "train"],
        refusal_tokens=read_json(RESULTS / "directions" / MODEL / "refusal_tokens.json")["tokens"],
        settings=Directions(harmful="harmful", harmless="harmless"),
    )


def _chat(tokenizer: Any, kind: str, split: str) -> list[list[int]]:
    """Return the templated prompts of one class and split, in the order of the activation cache."""
    ids = load_cache(RESULTS / "activations" / MODEL / "original.safetensors").groups[kind, split].ids
    texts = {record["id"]: record["instruction"] for record in read_json_lines(RESULTS / "prompts" / f"{kind}.jsonl")}
    return [chat_tokens(tokenizer, texts[name]) for name in ids]


def wide_and_shallow() -> Workload:
    """Return a model of random weights with another width, depth and vocabulary, on the same prompts."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    base = embedded()
    vocabulary = base.model.config.vocab_size
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=10,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=base.model.dtype).eval().requires_grad_(False)
    positions = base.candidates.shape[1]
    # A part is enough: these directions mean nothing.
    some = base.train[:: len(base.train) // 64]
    half = len(some) // 2
    states, _ = capture(model, some, positions, base.refusal_tokens)
    return Workload(
        name=f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.0f}M random",
        model=model,
        candidates=difference_in_means(states[:half], states[half:]),
        harmful=base.harmful,
        harmless=base.harmless,
        train=base.train,
        refusal_tokens=base.refusal_tokens,
        settings=base.settings,
    )


WORKLOADS: dict[str, Callable[[], Workload]] = {"embedded": embedded, "wide": wide_and_shallow}
