"""The files of a model folder in Hugging Face format, by the names that they are known by."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
DESCRIPTION = ("*.json", "*.jinja", "*.txt", "*.model")
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja")
CODE = "*.py"  # the model's own, taken only where it is trusted
CARD = "README.md"  # which names the licence
# What a wrapper of vision and language says about its images.
PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
# The same model once more, in Mistral's own format. Transformers does not read it; vLLM reads nothing else where it is.
MISTRALS = ("consolidated*.safetensors", "consolidated*.index.json", "params.json")


def is_mistrals(path: Path) -> bool:
    """Return whether a file belongs to Mistral's own format."""
    return any(fnmatch(path.name, pattern) for pattern in MISTRALS)


def matching_files(folder: Path, *patterns: str) -> list[Path]:
    """Return the files of a folder that fit a pattern, by name; no hidden ones, and none in Mistral's own format."""
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file() and not path.name.startswith(".") and not is_mistrals(path))


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, by name, as `matching_files`; none if it is none."""
    return matching_files(folder, "*.safetensors")
