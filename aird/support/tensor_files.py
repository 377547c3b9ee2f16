"""Tensors in one safetensors file that knows its own content: damage is found when it is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from aird.support.files import atomic_file

# One key: safetensors writes several in random order, and equal results should be equal files.
KEY = "aird"
HASH = "sha256"


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors and text atomically, with the SHA-256 of both in the file's metadata."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = metadata or {}
    text = json.dumps({**metadata, HASH: _digest(contiguous, metadata)}, sort_keys=True)
    with atomic_file(path) as temporary:
        save_file(contiguous, temporary, metadata={KEY: text})


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return what `save_tensors` wrote: tensors and text.

    Raises:
        ValueError: the file is missing, truncated or altered; the message names it.
    """
    try:
        with safe_open(path, "pt") as reader:
            metadata = json.loads(reader.metadata()[KEY])
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 - no dictionary
        if metadata.pop(HASH) != _digest(tensors, metadata):
            raise ValueError("its content does not have the SHA-256 that it was written with")
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it, and the next run rebuilds it") from error
    return tensors, metadata


def _digest(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
