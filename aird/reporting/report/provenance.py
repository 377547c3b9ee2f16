"""Where the numbers come from: sources, checkpoints, versions, locks, machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from aird.support.files import canonical_json, read_json, sha256_of
from aird.support.gpus import gpu_names
from aird.support.processor import processor_name

PACKAGES = (
    "snakemake torch transformers llmcompressor compressed-tensors peft safetensors scipy pandas matplotlib lm_eval"
).split()

Row = tuple[str, str]


def sources(settings: Mapping[str, Any]) -> list[Row]:
    """Return the pinned source of every model, ready-made checkpoint, prompt set and corpus of a configuration."""
    rows = [(f"model {name}", _source(model["source"])) for name, model in settings["models"].items()]
    for name, compression in settings["compressions"].items():
        for model, source in compression.get("sources", {}).items():
            rows.append((f"{name} of {model}", _source(source)))
    for name, prompt_set in settings["prompt_sets"].items():
        if prompt_set["source"] is not None:
            rows.append((f"prompts {name}", _source(prompt_set["source"])))
        else:
            rows.append((f"prompts {name}", f"{' and '.join(prompt_set['combine'])}, joined"))
    rows += [(f"corpus {name}", _source(corpus["source"])) for name, corpus in settings["corpora"].items()]
    return rows


def _source(source: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in source.items() if value is not None)


def checkpoints(manifests: Iterable[Path]) -> list[Row]:
    """Return the SHA-256 of the weights of each checkpoint, from its manifest; the folder is its name."""
    rows = []
    for path in manifests:
        files = read_json(path)["files"]
        weights = [f"{name} {digest}" for name, digest in files.items() if name.endswith((".safetensors", ".bin"))]
        rows.append(("/".join(path.parts[-3:-1]), ", ".join(weights)))
    return rows


def versions(records: Iterable[Path]) -> list[Row]:
    """Return the versions of the packages here, and of those that the records of vLLM's environment name."""
    rows = [(f"Python, {platform.system()}", f"{platform.python_version()}, {platform.release()}")]
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            continue
    served: dict[str, dict[str, None]] = {}
    for path in records:
        for name, number in (read_json(path)["versions"] or {}).items():
            served.setdefault(name, {})[number] = None
    return rows + [(f"{name} (of the server)", ", ".join(numbers)) for name, numbers in served.items()]


def locks(files: Iterable[Path]) -> list[Row]:
    """Return the SHA-256 of each lock."""
    return [(path.name, sha256_of(path)) for path in files]


def arithmetic(record: Path) -> list[Row]:
    """Return what was measured and chosen for the run's arithmetic (aird/support/processor.py)."""
    measured = read_json(record)
    speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in measured["gigaflops"].items())
    types = ", ".join(f"{stored} in {computed}" for stored, computed in measured["computes_in"].items())
    return [
        ("processor", measured["processor"]),
        ("GFLOP/s of one core", speeds),
        (f"checkpoints are computed (compute_dtype: {measured['compute_dtype']})", types),
    ]


def machine() -> list[Row]:
    """Return what this machine computes with; no name and no address of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    rows = [("processor", processor_name()), ("cores", str(os.cpu_count())), ("memory", f"{memory:.0f} GiB")]
    return rows + [("GPU", name) for name in gpu_names()]


def settings_rows(settings: Mapping[str, Any]) -> list[Row]:
    """Return what was asked for, one row per part of the configuration, defaults included."""
    rows = [("seed", str(settings["seed"])), ("directions", canonical_json(settings["directions"]))]
    for section, name in {"compressions": "compression", "patches": "patch", "suites": "suite"}.items():
        rows += [(f"{name} {key}", canonical_json(_without_none(value))) for key, value in settings[section].items()]
    return rows


def _without_none(settings: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if value is not None}
