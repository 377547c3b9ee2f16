"""Read a checkpoint folder tensor by tensor, without loading a model.

A safetensors file starts with the length of its header (8 bytes, little-endian)
and the header itself, JSON that gives each tensor's dtype, shape and byte range:
https://huggingface.co/docs/safetensors. So dtypes and sizes cost no reading of
weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from aird.models.config_json import Config, config_refusal
from aird.support.files import read_json

# Bits of one value, by the names that safetensors gives to dtypes.
FLOAT_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}
# Local names of the tensor that holds a matrix's values: dense and 8-bit, compressed-tensors, GPTQ and AWQ.
MATRIX_TENSORS = ("weight", "weight_packed", "qweight")


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies and what it is.

    Attributes:
        file: the safetensors file.
        name: the tensor's name in that file.
        dtype: safetensors' name of the dtype, such as "BF16".
        shape: its shape.
        start: offset of its first byte in the file.
        size: its bytes.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def load(self) -> torch.Tensor:
        """Return the tensor, on the CPU; ValueError if the file is truncated."""
        try:
            with safe_open(self.file, framework="pt", device="cpu") as stream:
                tensor: torch.Tensor = stream.get_tensor(self.name)
                return tensor
        except SafetensorError as error:
            raise ValueError(f"{self.file} is truncated or altered ({error}); fetch it again") from error

    def sha256(self) -> str:
        """Return the SHA-256 of dtype, shape and stored bytes."""
        digest = hashlib.sha256(f"{self.dtype} {self.shape}".encode())
        with open(self.file, "rb") as stream:
            stream.seek(self.start)
            left = self.size
            while left:
                block = stream.read(min(left, 1 << 24))
                if not block:
                    raise ValueError(f"{self.file} ends before tensor {self.name}: it is truncated")
                digest.update(block)
                left -= len(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder: its configuration and every stored tensor by name."""

    folder: Path
    config: Config
    tensors: dict[str, StoredTensor]

    @property
    def quantization_config(self) -> Mapping[str, Any] | None:
        """What config.json says about quantisation; None for a dense checkpoint."""
        return self.config.get("quantization_config")

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files, by name."""
        return sorted({tensor.file for tensor in self.tensors.values()})

    def module_tensors(self, module: str) -> dict[str, StoredTensor]:
        """Return the stored tensors of a module's weight by local name, such as "weight_scale".

        Biases are left out (a mixture's router may have one of another name): they are never compressed.
        """
        prefix = f"{module}."
        found = {}
        # A mixture has ten thousands of matrices, each of which is asked for.
        for name in self._sorted_names[bisect_left(self._sorted_names, prefix) :]:
            if not name.startswith(prefix):
                break
            if not name.endswith("bias"):
                found[name.removeprefix(prefix)] = self.tensors[name]
        return found

    @cached_property
    def _sorted_names(self) -> list[str]:
        return sorted(self.tensors)

    def matrix_modules(self) -> list[str]:
        """Return the modules that store one weight matrix: linear ones and embeddings, in natural order."""
        names = []
        for name, tensor in self.tensors.items():
            module, _, local = name.rpartition(".")
            if local in MATRIX_TENSORS and len(tensor.shape) == 2:
                names.append(module)
        return sorted(names, key=natural_order)

    def block_matrices(self) -> list[str]:
        """Return the linear modules inside the decoder blocks, in the order of the blocks.

        What chooses a mixture's experts is none of them: no recipe compresses it. Nor is a block behind the model's
        last one (`further_tensors`).

        Raises:
            ValueError: no list of `num_hidden_layers` blocks, or no matrix in it.
        """
        prefix = block_prefix(self.tensors, self.config)
        names = [name for name in self.matrix_modules() if name.startswith(prefix)]
        if not names:
            raise ValueError(f"{self.folder}: the decoder blocks {prefix}* hold no weight matrix")
        left_out = {name.rpartition(".")[0] for name in self.further_tensors()} | set(self.routers().values())
        return [name for name in names if name not in left_out]

    def further_tensors(self) -> set[str]:
        """Return the names of the tensors in blocks behind the model's last one, which Transformers does not load.

        GLM-4.5 and DeepSeek-V3 store their prediction of several tokens (MTP) so, as block `num_hidden_layers`.
        """
        prefix, layers = block_prefix(self.tensors, self.config), _block_count(self.config)
        found = (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in self.tensors)
        return {match.string for match in found if match and layers is not None and int(match[1]) >= layers}

    def routers(self) -> dict[str, str | None]:
        """Return what chooses a mixture's experts: a matrix of one row for each, beside a numbered list of that many.

        Returns:
            {module that holds a list of experts: stored module of the matrix, or None where there is no such one}.
        """
        modules = self.matrix_modules()
        experts: dict[str, set[str]] = {}
        for name in modules:
            if match := re.fullmatch(r"(.+\.\d+\..+)\.[^.]+\.(\d+)\.[^.]+", name):
                experts.setdefault(match[1], set()).add(match[2])
        found: dict[str, str | None] = dict.fromkeys(experts)
        for name in modules:
            holder, weight = name.rpartition(".")[0], self.tensors.get(f"{name}.weight")
            if holder in experts and weight is not None and weight.shape[0] == len(experts[holder]):
                found[holder] = name
        return found


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the configuration and the headers of all safetensors files of a checkpoint folder.

    Handles one `model.safetensors` and shards with `model.safetensors.index.json`.

    Raises:
        ValueError: no config.json or one that no model can have, no safetensors, a missing shard or one without its
            tensors, an index that names a file elsewhere, or `model.safetensors` beside an index of other files.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json: it is not a checkpoint in Hugging Face format")
    config = read_json(folder / "config.json")
    if reason := config_refusal(config):
        raise ValueError(f"{folder} {reason}")
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    tensors: dict[str, StoredTensor] = {}
    if index.is_file():
        located = _read_index(index)
        others = sorted(set(located.values()) - {single.name})
        if others and single.is_file():
            raise ValueError(
                f"{folder} holds {single.name} and beside it {index.name}, which lists {others[0]}: Transformers reads "
                f"the former, vLLM the latter; remove {index.name} if {single.name} is the whole model, else "
                f"{single.name}"
            )
        for file in sorted(set(located.values())):
            tensors |= _read_header(folder / file)
        absent = sorted(located.keys() - tensors.keys())
        if absent:
            raise ValueError(f"{index} lists {absent[0]} (and {len(absent) - 1} more), but no shard holds it")
    else:
        tensors = _read_header(single)
    return Checkpoint(folder, config, tensors)


def check_complete(loaded: Mapping[str, Any], source: Path) -> None:
    """Check that Transformers has found every weight of a model; it gives random values to others, with a warning.

    Args:
        loaded: of `from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)`.
        source: the folder or file, for the message.

    Raises:
        ValueError: a weight is missing, or has another shape than its model's configuration says.
    """
    missing = sorted(loaded["missing_keys"], key=natural_order)
    if missing:
        raise ValueError(
            f"{source} lacks tensors of its model ({len(missing)}, {missing[0]} first), which would get random values; "
            "fetch it again, or take a complete checkpoint"
        )
    for name, stored, wanted in sorted(loaded["mismatched_keys"], key=lambda each: natural_order(each[0])):
        raise ValueError(
            f"{source} stores {name} as {list(stored)}, but its config.json asks for {list(wanted)}; fetch both again, "
            "from one place"
        )


# How many decoder blocks a model has, by the names that config.json files have for it.
BLOCK_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def block_prefix(names: Iterable[str], config: Config) -> str:
    """Return what the names of all tensors in decoder blocks start with, such as "model.layers.".

    Blocks are found by structure: the one numbered list that runs from 0 to their number - 1, or where there is none
    the one that goes on behind (`Checkpoint.further_tensors`).

    Raises:
        ValueError: there is no such list, or more than one; the message says what was found.
    """
    layers = _block_count(config)
    indices: dict[str, set[int]] = {}
    for name in names:
        match = re.match(r"((?:.*?\.)?)(\d+)\.", name)
        if match:
            indices.setdefault(match[1], set()).add(int(match[2]))
    # Some configurations name the kind of each block instead of their number (Nemotron-H).
    fitting = [prefix for prefix, found in indices.items() if found == set(range(layers or len(found)))]
    if not fitting and layers:
        fitting = [prefix for prefix, found in indices.items() if found > set(range(layers))]
    if len(fitting) != 1:
        found = {f"{prefix}*": len(numbers) for prefix, numbers in indices.items()}
        raise ValueError(f"looked for one numbered list of {layers} decoder blocks among the tensors, found {found}")
    return fitting[0]


def _block_count(config: Config) -> int | None:
    text = config.get("text_config", config)
    return next((text[key] for key in BLOCK_COUNTS if key in text), None)


def _read_index(index: Path) -> dict[str, str]:
    """Return {tensor: name of its shard} of an index.

    Raises:
        ValueError: it is no index, or names a file outside of its own folder.
    """
    content = read_json(index)
    located = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(located, dict) or not located or not all(isinstance(name, str) for name in located.values()):
        raise ValueError(f"{index} has no `weight_map` that gives each tensor its file; fetch it again")
    for name in sorted(set(located.values())):
        if name != Path(name).name or "\\" in name or name in ("", ".."):
            raise ValueError(
                f"{index} names the file {name}, and the weights of a model lie beside their index; put the file "
                "there, and write its name alone"
            )
    return located


def _read_header(file: Path) -> dict[str, StoredTensor]:
    if not file.is_file():
        raise ValueError(f"{file} is missing: the checkpoint needs its weights as safetensors")
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, file.stat().st_size)))
        tensors = {}
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                shape = tuple(entry["shape"])
                tensors[name] = StoredTensor(file, name, entry["dtype"], shape, 8 + length + start, end - start)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is truncated or altered ({error}); fetch it again") from error
    return tensors


def natural_order(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts block 2 before block 10."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
