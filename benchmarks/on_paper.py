"""What the counted operations and bytes mean for larger models and grids: benchmarks/growth.md.

Nothing here is measured: operations are counted as in benchmarks/scoring.py, for a GPU that reaches
a stated part of its matrix rate, and planning is extrapolated from benchmarks/planning.md.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# Name: layers, hidden size, parameters.
MODELS = {"7B": (32, 4096, 7e9), "70B": (80, 8192, 70e9)}
POSITIONS, PROMPTS, PACK_TOKENS = 6, 64, 512  # post-instruction tokens; validation prompts of both classes
TOKENS = 955  # of one class's 32 prompts of the default grid, packed: the prefix once a pack
ELIGIBLE = 0.3  # of the candidates in range, scored in full
RATE = 0.4 * 990e12  # of an H100 in bfloat16
TRAIN_TOKENS = 6500  # 256 prompts, packed


def scoring_passes(layers: int) -> float:
    """Return how many full passes over one class's prompts all scores cost."""
    used = int(0.8 * layers)
    added = POSITIONS * sum((layers - layer) / layers for layer in range(1, used))
    ablated = 2 * ELIGIBLE * POSITIONS * (used - 1)
    return added + ablated


def model_rows() -> list[str]:
    """Return one row of the table per model."""
    rows = []
    for name, (layers, hidden, parameters) in MODELS.items():
        passes = scoring_passes(layers)
        operations = passes * TOKENS * 2 * parameters
        published = 3 * layers * POSITIONS
        stored = PACK_TOKENS * layers * hidden * 2
        cache = 4 * PROMPTS * layers * POSITIONS * hidden * 2 + PROMPTS * layers * POSITIONS * hidden * 2
        capture = TRAIN_TOKENS * 2 * parameters / RATE
        rows.append(
            f"| {name} | {layers} x {POSITIONS} | {passes:.0f} of {published} | {operations / RATE:.0f} "
            f"| {capture:.1f} "
            f"| {2 * parameters / 1e9:.0f} | {stored / 1e9:.2f} | {cache / 1e9:.2f} |"
        )
    return rows


def write(planning_exponent: float, jobs: float, seconds: float, pairs: int = 1000, known_pairs: int = 650) -> None:
    """Write growth.md.

    Args:
        planning_exponent: of planning's time in jobs.
        jobs, seconds: the largest grid that was planned, of `known_pairs` pairs.
        pairs: of the grid that is asked about.
        known_pairs: models x (compressions + the original) of that largest grid.
    """
    wanted = jobs * pairs / known_pairs
    planning = seconds * (wanted / jobs) ** planning_exponent
    lines = [
        "# Growth",
        "",
        "![time against each quantity](growth.svg)",
        "",
        "Measured with `python -m benchmarks growth` (exponents in results.md). The rest of this page is arithmetic,",
        "`benchmarks/on_paper.py`, for one H100 at 40% of its bfloat16 rate; none of it was run on such a machine.",
        "",
        "| model | candidates | passes over 32 prompts, of the published number | scoring, s | capture, s "
        "| weights, GB | stored block inputs, GB | activation cache, GB |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *model_rows(),
        "",
        "Scoring grows with the square of the layers (candidates x what lies above each), linearly with positions,",
        "prompts and parameters; capture linearly with all of them. A model that does not fit one GPU is spread by",
        "layers, and its GPUs then work one after another: memory is divided, time is not.",
        "",
        f"A grid of {pairs} pairs with the default's 4 patches and 3 suites is about {wanted:.0f} jobs, planned in",
        f"{planning:.0f} s. Its time is that of serving: scoring a 7B model takes seconds, a start of vLLM with the",
        "answers to a suite minutes, for each of its cells. So such a grid is a matter of how many GPUs serve at once,",
        "and of nothing in the search for directions.",
        "",
    ]
    (FOLDER / "growth.md").write_text("\n".join(lines), encoding="utf-8")
