"""How time and memory of scoring and capture grow, with exponents fitted on measured sizes: growth.md, growth.svg.

Random Llama-style models, one quantity varied at a time and the others held. An exponent is fitted
by least squares on the three largest sizes, above which fixed costs no longer rule.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from aird.directions.activations import capture
from aird.directions.candidate_scores import score_candidates
from aird.settings.directions import Directions
from benchmarks import on_paper
from benchmarks.measure import Result, fitted_exponent, peak_mb, reset_peak, timed

FOLDER = Path(__file__).resolve().parent
BASE = {"positions": 2, "prompts": 16, "layers": 8, "hidden": 256}
VARIED = {
    "positions": (1, 2, 4, 8),
    "prompts": (8, 16, 32, 64),
    "layers": (4, 8, 16, 32),
    "hidden": (128, 256, 512, 768),
}
AXES = {
    "positions": "candidates (layers x positions)",
    "prompts": "prompts",
    "layers": "layers",
    "hidden": "hidden size",
}
TOKENS, VOCABULARY = 32, 4096
TAIL = 3  # points at the large end that an exponent is fitted on


def measure(size: dict[str, int]) -> dict[str, float]:
    """Return seconds and extra peak MiB of scoring all candidates, and seconds of capture, at one size."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size["hidden"],
        intermediate_size=3 * size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["hidden"] // 64,
        num_key_value_heads=size["hidden"] // 64,
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    prompts = torch.randint(VOCABULARY, (size["prompts"], TOKENS)).tolist()
    candidates = torch.randn(size["layers"], size["positions"], size["hidden"], dtype=torch.float64)
    settings = Directions(harmful="harmful", harmless="harmless")
    capture(model, prompts[:2], 1, [1])
    reset_peak()
    before = peak_mb()
    _, scoring = timed(lambda: score_candidates(model, candidates, prompts, prompts, [1], settings))
    memory = peak_mb() - before
    _, capturing = timed(lambda: capture(model, prompts, size["positions"], [1]))
    return {"scoring": scoring, "capture": capturing, "memory": memory}


def run() -> list[Result]:
    """Measure, fit, draw, and write what it means for larger models."""
    found: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for name, values in VARIED.items():
        found[name] = [(value, measure(BASE | {name: value})) for value in values]
    exponents = {
        name: {
            kind: fitted_exponent(
                [float(value) for value, _ in points[-TAIL:]], [row[kind] for _, row in points[-TAIL:]]
            )
            for kind in ("scoring", "capture")
        }
        for name, points in found.items()
    }
    draw(found, exponents)
    return [
        Result(
            f"growth with {AXES[name]}: exponent of scoring's time",
            exponents[name]["scoring"],
            max(row["memory"] for _, row in points),
            None,
            ", ".join(f"{value}: {row['scoring']:.2f} s, {row['memory']:.0f} MiB" for value, row in points)
            + f"; capture's exponent {exponents[name]['capture']:.2f}",
        )
        for name, points in found.items()
    ]


def draw(found: dict[str, list[tuple[int, dict[str, float]]]], exponents: dict[str, dict[str, float]]) -> None:
    """Draw time against each quantity, and planning against grid cells, on logarithmic axes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "aird"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found) + 1, figsize=(15, 3.2), layout="constrained")
    for axis, (name, points) in zip(axes, found.items(), strict=False):
        for kind, marker in (("scoring", "o"), ("capture", "s")):
            label = f"{kind}, exponent {exponents[name][kind]:.2f}"
            axis.plot([value for value, _ in points], [row[kind] for _, row in points], marker=marker, label=label)
        axis.set(xlabel=AXES[name].replace("candidates (layers x positions)", "positions"), xscale="log", yscale="log")
        axis.set_xticks([value for value, _ in points], [str(value) for value, _ in points])
        axis.minorticks_off()
        axis.legend(fontsize=7)
    jobs, seconds = planning()
    exponent = fitted_exponent(jobs[-TAIL:], seconds[-TAIL:])
    on_paper.write(exponent, jobs[-1], seconds[-1])
    axes[-1].plot(jobs, seconds, marker="o", label=f"planning, exponent {exponent:.2f}")
    axes[-1].set(xlabel="jobs of the grid", xscale="log", yscale="log")
    axes[-1].legend(fontsize=7)
    axes[0].set_ylabel("seconds")
    figure.savefig(FOLDER / "growth.svg", metadata={"Date": None})


def planning() -> tuple[list[float], list[float]]:
    """Return jobs and seconds from benchmarks/planning.md."""
    rows = [line.split("|") for line in (FOLDER / "planning.md").read_text().splitlines() if line.startswith("| ")]
    numbers = [(float(row[2]), float(row[3])) for row in rows if row[2].strip().isdigit()]
    jobs, seconds = map(list, zip(*numbers, strict=True))
    return jobs, seconds
