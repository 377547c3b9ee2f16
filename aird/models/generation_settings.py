"""What a checkpoint itself says about generation; recorded at import, and but for the ends of a text not followed.

Every reply is greedy (aird/inference/generation.py, aird/evaluation/engines). Who uses the model by its own
settings, with sampling or a repetition penalty, may see other replies, so the manifest says what those are.
"""

from __future__ import annotations

from pathlib import Path

from aird.models.gguf_file import read_gguf
from aird.support.files import read_json

# About the file, or which tokens begin and end a text, which is followed.
NO_SETTINGS = {"transformers_version", "_from_model_config", "bos_token_id", "eos_token_id", "pad_token_id"}


def own_generation_settings(folder: Path, gguf: Path | None = None) -> dict[str, object]:
    """Return what a checkpoint's generation_config.json says beyond special tokens, sorted by name; {} without one.

    Args:
        folder: the checkpoint.
        gguf: the GGUF file that it was decoded from, whose settings (`general.sampling.`) are returned, too.
    """
    path = folder / "generation_config.json"
    settings: dict[str, object] = read_json(path) if path.is_file() else {}
    if gguf is not None:
        settings = {**settings, **read_gguf(gguf).sampling}
    return {name: settings[name] for name in sorted(settings.keys() - NO_SETTINGS)}


def ends_of_text(folder: Path) -> list[int]:
    """Return the tokens that end a text, as a checkpoint's generation settings or its configuration have them.

    Raises:
        ValueError: a file says something else in their place.
    """
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        settings = read_json(path) if path.is_file() else {}
        if not isinstance(settings, dict):
            raise ValueError(f"{path} is no JSON object; fetch it again")
        inner = settings.get("text_config")
        tokens = settings.get("eos_token_id", inner.get("eos_token_id") if isinstance(inner, dict) else None)
        if tokens is None:
            continue
        ends = tokens if isinstance(tokens, list) else [tokens]
        if not all(type(token) is int for token in ends):
            raise ValueError(f"{path}: eos_token_id is {tokens!r}; write the number of a token, or a list of numbers")
        return list(ends)
    return []
