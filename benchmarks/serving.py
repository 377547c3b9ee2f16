"""Completions of the default suite by vLLM, start-up included, against Transformers' `generate` at batch 8.

`generate` runs as its documentation shows: left-padded batches, greedy; it is timed on every fifth
prompt and scaled. vLLM runs twice, with and without its cache of prefixes, and the answers are compared.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from aird.evaluation.engine import ServerSettings
from aird.evaluation.engines.vllm import Vllm, VllmSettings
from aird.models.loading import load_tokenizer
from aird.prompts.chat import chat_tokens
from aird.prompts.sets import select
from aird.settings.suites import Suite
from aird.support.files import read_json, read_json_lines
from benchmarks.measure import Result, block_operations, matrix_rate, vocabulary_operations
from benchmarks.workload import RESULTS, ROOT, Workload, checkpoint

BATCH_SIZE, EVERY = 8, 5


def vllm_python() -> Path:
    """Return the Python of the workflow's own vLLM environment, which is built where it is missing."""
    record = RESULTS / "environments" / "vllm.json"
    if not record.exists():
        command = [sys.executable, "-m", "snakemake", "--cores", "all", "--quiet", "all", "--"]
        subprocess.run([*command, str(record.relative_to(ROOT))], cwd=ROOT, check=True)
    return record.parent / str(read_json(record)["python"])


def suite_prompts(tokenizer: Any) -> tuple[list[list[int]], int]:
    """Return the token ids of the default suite's prompts, and how long its completions may be."""
    configuration = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    suite = Suite.model_validate(next(iter(configuration["suites"].values())))
    chosen = []
    for selection in (suite.harmful, suite.harmless):
        chosen += select(
            read_json_lines(RESULTS / "prompts" / f"{selection.set}.jsonl"), selection, configuration["seed"]
        )
    return [chat_tokens(tokenizer, record["instruction"]) for record in chosen], suite.maximum_new_tokens


@torch.no_grad()
def plain_generate(model: Any, tokenizer: Any, prompts: list[list[int]], new_tokens: int) -> int:
    """Complete prompts in padded batches of eight; return the number of new tokens."""
    count = 0
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[start : start + BATCH_SIZE]
        padded = tokenizer.pad({"input_ids": batch}, padding_side="left", return_tensors="pt")
        output = model.generate(
            **padded, max_new_tokens=new_tokens, do_sample=False, temperature=None, top_p=None, top_k=None
        )
        new = output[:, padded["input_ids"].shape[1] :]
        ended = (new == model.generation_config.eos_token_id).cumsum(1) > 0
        count += int((~ended).sum())
    return count


def served(folder: Path, prompts: list[list[int]], new_tokens: int, caching: bool) -> tuple[list[Any], float, float]:
    """Return vLLM's completions, the seconds until it was ready, and those that it answered in."""
    options = VllmSettings(arguments={} if caching else {"enable-prefix-caching": False})
    settings = ServerSettings(maximum_model_length=512)
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as logs,
        Vllm(vllm_python(), options).serve(folder, settings, Path(logs) / "server.log") as client,
    ):
        ready = time.perf_counter() - start
        completions = client.complete(prompts, new_tokens)
        answered = time.perf_counter() - start - ready
    return completions, ready, answered


def _operations(work: Workload, prompt_tokens: int, new_tokens: int) -> float:
    """Return the operations of every token once through the blocks, and of each new one's logits."""
    blocks = len(work.candidates) * block_operations(work.model)
    return (prompt_tokens + new_tokens) * blocks + new_tokens * vocabulary_operations(work.model)


def run(work: Workload) -> list[Result]:
    """Time all three on the same prompts."""
    folder = checkpoint()
    tokenizer = load_tokenizer(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts, new_tokens = suite_prompts(tokenizer)
    sample = prompts[::EVERY]
    start = time.perf_counter()
    generated = plain_generate(work.model, tokenizer, sample, new_tokens)
    taken = time.perf_counter() - start
    transformers_rate = generated / taken
    completions, ready, answered = served(folder, prompts, new_tokens, caching=True)
    uncached, uncached_ready, uncached_answered = served(folder, prompts, new_tokens, caching=False)
    tokens = sum(completion.token_count for completion in completions)
    rate = tokens / (ready + answered)
    floor = _operations(work, sum(map(len, prompts)), tokens) / (
        matrix_rate(work.model.dtype) * torch.get_num_threads()
    )
    same = sum(a.text == b.text for a, b in zip(completions, uncached, strict=True))
    return [
        Result(
            f"completions by vLLM with start-up, {work.name}",
            rate / transformers_rate,
            None,
            floor / (ready + answered),
            f"{tokens} tokens of {len(prompts)} prompts in {ready:.1f} s start and {answered:.1f} s; generate "
            f"at batch {BATCH_SIZE} {transformers_rate:.0f} tokens/s ({len(sample)} prompts)",
        ),
        Result(
            f"vLLM's answers without its start, {work.name}",
            tokens / answered / transformers_rate,
            None,
            floor / answered,
            f"{tokens / answered:.0f} tokens/s",
        ),
        Result(
            f"vLLM with its prefix cache over without, {work.name}",
            uncached_answered / answered,
            None,
            None,
            f"without it {uncached_ready:.1f} s start and {uncached_answered:.1f} s; {same} of {len(prompts)} answers "
            "are the same; on a CPU a cached block is 128 tokens, longer than most prompts",
        ),
    ]
