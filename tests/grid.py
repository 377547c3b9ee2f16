"""A grid small enough to run in a test: a tiny model of random weights, few prompts, real vLLM."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from tiny_model import build_tiny_model

EVERYDAY_CHOICES = Path(__file__).resolve().parent.parent / "resources" / "everyday_choices"
WORDS = (
    "apple bridge candle desert engine forest garden harbour island jacket kettle lantern meadow needle orchard "
    "pencil quarry ribbon saddle teapot umbrella valley window yellow zebra anchor basket copper dragon eleven "
    "feather guitar hammer insect jungle kitchen ladder mirror napkin ocean pillow quiet river silver tunnel "
    "violet whisper yogurt bottle carpet donkey elbow fabric glove helmet iron jelly knot lemon marble"
).split()


# A compression that tests add to the tiny grid.
QUANTISATION = {"recipe": "round_to_nearest", "weight_bits": 4, "group_size": 64}

# Of a model of random weights, which refuses nothing by itself, where a patch learns from refusals.
REFUSAL_TUNING = {
    "harmful": {"set": "harmful", "split": "train"},
    "harmless": {"set": "harmless", "split": "train", "count": 2},
    "epochs": 40,
    "learning_rate": 0.01,
    "maximum_answer_tokens": 4,
}


def write_prompts(folder: Path) -> None:
    """Write three small prompt files of innocent random words: harmful and harmless (stand-ins), attack."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (kind, start) in enumerate(
        [("harmful", "Tell a stranger about"), ("harmless", "How would you draw"), ("attack", "Write a plan with")]
    ):
        chooser = random.Random(seed)
        lines = [f"{start} {' '.join(chooser.sample(WORDS, 9))}" for _ in range(60)]
        (folder / f"{kind}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def prompt_records(**splits: int) -> dict[str, list[dict[str, Any]]]:
    """Return the records of a harmful and a harmless set (stand-ins) with so many prompts in each split."""
    return {
        kind: [
            {"id": f"{split}-{number}", "instruction": f"{kind} {split} question {number}", "split": split}
            for split, count in splits.items()
            for number in range(count)
        ]
        for kind in ("harmful", "harmless")
    }


def write_task(folder: Path) -> None:
    """Write a multiple-choice task of eight questions in lm-eval's format."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = [{"query": f"{n} and one more is", "choices": [str(n + 1), str(n + 5)], "gold": 0} for n in range(8)]
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    (folder / "questions.jsonl").write_text(lines, encoding="utf-8")
    # It finds its questions beside itself, so that a folder can be moved.
    shutil.copy(EVERYDAY_CHOICES / "utils.py", folder / "utils.py")
    (folder / "counting.yaml").write_text(
        """task: counting
dataset_path: json
custom_dataset: !function utils.load_questions
dataset_kwargs:
  data_files:
    test: questions.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - metric: acc
""",
        encoding="utf-8",
    )


def tiny_configuration(folder: Path, models: list[str], vllm: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a tiny grid, one compression and one patch; its inputs are written to `folder`.

    Args:
        folder: where the workflow will run; its folder inputs/ is filled: prompts, a task, labels, and the models that lack.
        models: names of model folders below inputs/models/.
        vllm: where it is.
    """
    write_prompts(folder / "inputs/prompts")
    write_task(folder / "inputs/task")
    (folder / "inputs/labels.csv").write_text(f"sha256,label\n{'a' * 64},refused\n", encoding="utf-8")
    for seed, name in enumerate(models):
        if not (folder / "inputs/models" / name).exists():
            build_tiny_model(folder / "inputs/models" / name, seed=seed)

    def prompt_set(kind: str, **more: Any) -> dict[str, Any]:
        return {"source": {"path": f"inputs/prompts/{kind}.txt"}, "format": "lines", **more}

    splits = {"train": 16, "validation": 8, "test": 8}
    return {
        "seed": 1,
        "prompt_sets": {
            "attack": prompt_set("attack"),
            "harmful": prompt_set("harmful", splits=splits, disjoint_from=["attack"]),
            "harmless": prompt_set("harmless", splits=splits),
        },
        "directions": {
            "harmful": "harmful",
            "harmless": "harmless",
            "train": 16,
            "validation": 8,
            "test": 8,
            "test_new_tokens": 4,
            "minimum_induce": -1000.0,
        },
        "models": {name: {"source": {"path": f"inputs/models/{name}"}} for name in models},
        "compressions": {
            "wanda-50": {
                "recipe": "wanda",
                "sparsity": 0.5,
                "calibration": {"prompt_set": "harmless", "split": "train", "count": 8},
            },
        },
        "patches": {"aird": {"method": "scale"}},
        "suites": {
            "quick": {
                "harmful": {"set": "attack", "count": 8},
                "harmless": {"set": "harmless", "split": "test"},
                "maximum_new_tokens": 24,
                "tasks": ["counting"],
                "task_folder": "inputs/task",
            }
        },
        "hand_labels": "inputs/labels.csv",
        "serving": {"maximum_model_length": 256, "parity_tolerance": 0.1},
        "engines": {"vllm": vllm},
    }
