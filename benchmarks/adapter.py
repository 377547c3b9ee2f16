"""One AIRD adapter of a 7B-shaped model: seconds, and bytes read from disk; then the same edits merged.

Two checkpoints of random weights with the widths of a 7B model, a block a shard, and few blocks: what
an edit costs does not depend on how many blocks there are beside it. Their pages are dropped from the
cache first, so that what is read is read from disk (/proc/self/io).
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from aird.directions.direction import Direction, save_direction
from aird.models.checkpoint import read_checkpoint
from aird.patching.adapters import load_adapter, merge
from aird.patching.formula import make_by_formula
from aird.patching.method import PatchInputs
from aird.patching.methods.scale import Scale
from benchmarks.measure import Result, memory_rate, peak_mb, reset_peak, timed
from benchmarks.workload import RESULTS

HIDDEN, INTERMEDIATE, BLOCKS, VOCABULARY = 4096, 11008, 3, 4000
SIZES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}


def write_checkpoint(folder: Path, seed: int) -> Path:
    """Write random weights in the layout of a sharded Llama checkpoint."""
    folder.mkdir()
    # One matrix of noise, of which each weight takes what it needs: drawing 600 million numbers takes a minute.
    noise = torch.randn(HIDDEN * INTERMEDIATE, generator=torch.Generator().manual_seed(seed)).mul_(0.02).bfloat16()

    def matrix(*shape: int) -> torch.Tensor:
        return noise[: math.prod(shape)].view(shape).clone()

    shards = [
        {f"model.layers.{block}.{name}.weight": matrix(*shape) for name, shape in SIZES.items()}
        for block in range(BLOCKS)
    ]
    for block, shard in enumerate(shards):
        shard |= {
            f"model.layers.{block}.{name}.weight": torch.ones(HIDDEN, dtype=torch.bfloat16)
            for name in ("input_layernorm", "post_attention_layernorm")
        }
    shards.append({"model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN), "model.norm.weight": torch.ones(HIDDEN)})
    weight_map = {}
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def forget(files: Iterable[Path]) -> None:
    """Drop files from the page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def bytes_read() -> int:
    """Return the bytes that this process has had read from disk so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def run() -> list[Result]:
    """Compute, write and merge one patch of one block."""
    with tempfile.TemporaryDirectory(dir=RESULTS) as temporary:
        folder = Path(temporary)
        original, compressed = (
            write_checkpoint(folder / name, seed) for seed, name in enumerate(("original", "compressed"))
        )
        unit = torch.nn.functional.normalize(torch.randn(HIDDEN, dtype=torch.float64), dim=0)
        files = folder / "direction.safetensors", folder / "direction.json"
        save_direction(Direction(unit=unit, norm=1.0, record={"layer": 2, "position": -1}), *files)
        inputs = PatchInputs("compressed", original, compressed, files)
        settings = Scale(alpha=1.0, blocks="source")
        forget([*original.glob("*"), *compressed.glob("*")])
        (folder / "adapter").mkdir()

        def make() -> None:
            make_by_formula(settings, inputs, folder / "adapter")

        reset_peak()
        before = bytes_read()
        start = time.perf_counter()
        make()
        cold = time.perf_counter() - start
        read, memory = bytes_read() - before, peak_mb()
        _, busy = timed(make)
        start = time.perf_counter()
        make()
        warm = time.perf_counter() - start
        checkpoint, edits = read_checkpoint(compressed), load_adapter(folder / "adapter")
        whole = sum(file.stat().st_size for file in checkpoint.weight_files)
        matrices = 2 * sum(checkpoint.tensors[f"{edit.module}.weight"].size for edit in edits)
        floor = matrices / memory_rate()
        forget(compressed.glob("*"))
        (folder / "merged").mkdir()
        reset_peak()
        before = bytes_read()
        _, merging = timed(lambda: merge(compressed, edits, folder / "merged"))
        merged_read, merged_memory = bytes_read() - before, peak_mb()
        shards = {checkpoint.tensors[f"{edit.module}.weight"].file for edit in edits}
        edited = sum(file.stat().st_size for file in shards)
    return [
        Result(
            "AIRD adapter, one 7B-shaped block",
            2 * whole / read if read else None,
            memory,
            floor / busy,
            f"{warm:.2f} s from cached pages ({busy:.2f} s of processor time), {cold:.2f} s from disk; "
            f"read {read / 2**20:.0f} MiB of "
            f"{2 * whole / 2**20:.0f} in both checkpoints, where the edited matrices are {matrices / 2**20:.0f} "
            "(ratio: all bytes over those read)",
        ),
        Result(
            "merging it",
            whole / merged_read if merged_read else None,
            merged_memory,
            2 * edited / memory_rate() / merging,  # read and written once
            f"{merging:.2f} s; read {merged_read / 2**20:.0f} MiB of {whole / 2**20:.0f}, where the shard with "
            f"the edited matrices is {edited / 2**20:.0f}; the other shards are links",
        ),
    ]
