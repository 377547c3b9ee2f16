"""Write benchmarks/compressions.md from a run of benchmarks/compressions.yaml: one row per recipe.

snakemake all merged_checkpoints --cores all --configfile benchmarks/compressions.yaml
python -m benchmarks.compressions [results]
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

from aird.configuration.configuration import Configuration
from aird.configuration.loading import load_configuration
from aird.configuration.local_files import load_yaml_strictly
from aird.settings.base import ORIGINAL, PLAIN
from aird.support.files import read_json

FOLDER = Path(__file__).parent
CONFIGURATION = FOLDER / "compressions.yaml"
DOCUMENT = FOLDER / "compressions.md"
PATCH = "aird"
COLUMNS = (
    "compression | stored as | refusal, %: plain, aird | over-refusal, %: plain, aird | perplexity: plain, aird | "
    "bits per weight: base, merged | sparsity: base, merged | seconds: compress, all nodes"
)


def document(results: Path, configuration: Configuration) -> str:
    """Return the table of all compressions that have been evaluated.

    Args:
        results: the folder of a run's results.
        configuration: what has run; one model and one suite.

    Returns:
        A page with a row per evaluated compression, which names those that were not.

    Raises:
        ValueError: nothing was evaluated.
    """
    (model,) = configuration.models
    (suite,) = configuration.suites
    settings = configuration.suites[suite]
    names = [ORIGINAL, *configuration.compressions_of(model)]
    missing = [name for name in names if not all(path.is_file() for path in _scores(results, model, name, suite))]
    if missing == names:
        raise ValueError(f"{results} holds no scores of {', '.join(missing)}; run benchmarks/compressions.yaml first")
    names = [name for name in names if name not in missing]
    lines = [
        "# Every compression recipe through the whole pipeline",
        "",
        "    snakemake all merged_checkpoints --cores all --configfile benchmarks/compressions.yaml",
        "    python -m benchmarks.compressions",
        "",
        f"{model}, {settings.harmful.count} harmful and {settings.harmless.count} harmless prompts,"
        f" {settings.maximum_new_tokens} new tokens, directions from {configuration.directions.train} prompts a class.",
        "So few prompts show that each recipe works, not how much refusal it costs: a rate of 40 prompts has an",
        "interval of 30 points. Perplexity is of the original's own answers. Each checkpoint passed the parity check",
        "between vLLM and Transformers, plain and patched. Seconds are of one core, shared with other work.",
        *([f"Not evaluated in this run: {', '.join(missing)}."] if missing else []),
        "",
        f"| {COLUMNS} |",
        "|" + " --- |" * (COLUMNS.count("|") + 1),
        *(_row(results, model, name, suite) for name in names),
    ]
    return "\n".join(lines) + "\n"


def _row(results: Path, model: str, name: str, suite: str) -> str:
    manifest = read_json(results / "models" / model / name / "manifest.json")
    scores = [read_json(path) for path in _scores(results, model, name, suite)]
    total = manifest.get("total", {})
    merged = results / "patches" / model / name / PATCH / "merged" / "manifest.json"
    totals = [total, read_json(merged)["total"]] if total else []
    seconds = _seconds(results / "benchmarks", model, name)
    cells = [
        name,
        ", ".join(total.get("formats", ["dense"])),
        ", ".join(f"{100 * score['rates']['refusal']['rate']:.1f}" for score in scores),
        ", ".join(f"{100 * score['rates']['over_refusal']['rate']:.1f}" for score in scores),
        ", ".join(_perplexity(score) for score in scores),
        ", ".join(f"{found['bits_per_weight']:.2f}" for found in totals) or "16.00",
        ", ".join(f"{found['sparsity']:.3f}" for found in totals),
        f"{seconds.get('compression', 0):.0f}, {sum(seconds.values()):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _perplexity(score: dict[str, Any]) -> str:
    found = score["perplexity"]
    return f"{found['perplexity']:.2f}" if found else "none"


def _scores(results: Path, model: str, compression: str, suite: str) -> list[Path]:
    """Return the score files of a compression: plain, and patched where it is not the original."""
    patches = [PLAIN] if compression == ORIGINAL else [PLAIN, PATCH]
    return [results / "scores" / model / compression / patch / f"{suite}.json" for patch in patches]


def _seconds(folder: Path, model: str, name: str) -> dict[str, float]:
    """Return the seconds of every stage's jobs for one checkpoint, from Snakemake's benchmark files."""
    found: dict[str, float] = {}
    for stage in ("compression", "activations", "directions", "comparisons", "patches", "evaluation", "scores"):
        below = folder / stage / model
        for path in [*below.glob(f"{name}.tsv"), *(below / name).rglob("*.tsv")]:
            with open(path, encoding="utf-8", newline="") as stream:
                found[stage] = found.get(stage, 0) + sum(
                    float(row["s"]) for row in csv.DictReader(stream, delimiter="\t")
                )
    return found


def main() -> None:
    """Write the document."""
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("results")
    DOCUMENT.write_text(document(results, load_configuration(load_yaml_strictly(CONFIGURATION))), encoding="utf-8")


if __name__ == "__main__":
    main()
