"""What a GGUF file holds: sizes and quantisation types from its header, and the tensor of each module.

Its matrices are dequantised by Transformers with the `gguf` package
(`aird.models.importing.import_model`); this says beforehand whether they can be.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from aird.models.gguf_reader import reader_of

MODEL_FILE = "model.gguf"  # in the folder of a checkpoint that llama.cpp can serve
KIND = "general.type"  # "model" where a file does not say it
SAMPLING = "general.sampling."  # what a file says about sampling, which llama.cpp follows unless a request says else
FREQUENCY_FACTORS = "rope_freqs.weight"  # llama.cpp's name of the tensor
TOKENIZER = "tokenizer.ggml."  # what a file says about its tokens


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: its name, quantisation type, stored bytes and number of values."""

    name: str
    type: str
    size: int
    count: int


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file.

    Attributes:
        path: where it is.
        architecture: llama.cpp's name of it, such as "llama".
        sizes: whole numbers of its metadata, without the architecture before them, such as "block_count".
        tensors: by llama.cpp's names.
        sampling: how it asks to be sampled (`general.sampling.`), such as "penalty_repeat".
        tokenizer: what it says about tokens (`tokenizer.ggml.`), such as "eos_token_id".
        chat_template: None where it holds none.
        rope_scaling: how it stretches positions (`rope.scaling.type`), such as "yarn"; None where it does not say.
        name: of the model (`general.name`); empty where it does not say.
    """

    path: Path
    architecture: str
    sizes: dict[str, int]
    tensors: dict[str, GGUFTensor]
    sampling: Mapping[str, object]
    tokenizer: Mapping[str, Any] = field(repr=False)
    chat_template: str | None
    rope_scaling: str | None = None
    name: str = ""

    @property
    def tokens(self) -> list[str]:
        """The texts of its tokens, by their numbers."""
        return list(self.tokenizer.get("tokens", []))

    def tensor_of(self, module: str) -> GGUFTensor:
        """Return the tensor that holds the weight of a module, such as "model.layers.3.self_attn.o_proj".

        Raises:
            ValueError: llama.cpp has no name for it, or the file no such tensor.
        """
        import gguf

        number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        known = gguf.get_tensor_name_map(number, self.sizes["block_count"]).get_name(module)
        if known is None:
            raise ValueError(f"llama.cpp has no name for {module} in its architecture {self.architecture}")
        name = f"{known}.weight"
        if name not in self.tensors:
            raise ValueError(f"{self.path} holds no tensor {name}, the weight of {module}")
        return self.tensors[name]

    def matrices(self, modules: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield modules with their weights as llama.cpp holds them: [d_out, d_in], float32.

        Transformers reorders the rows of some matrices (queries and keys of Llama); this does not.

        Raises:
            ValueError: as of `tensor_of`.
        """
        import gguf

        wanted = {self.tensor_of(module).name: module for module in modules}
        for tensor in reader_of(self.path).tensors:
            if tensor.name in wanted:
                yield wanted[tensor.name], torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())

    def frequency_factors(self) -> list[float] | None:
        """Return what llama.cpp divides the frequencies of positions by, as of Llama 3.1 on; None where it does not."""
        import gguf

        if FREQUENCY_FACTORS not in self.tensors:
            return None
        tensor = next(tensor for tensor in reader_of(self.path).tensors if tensor.name == FREQUENCY_FACTORS)
        factors: list[float] = gguf.dequantize(tensor.data, tensor.tensor_type).astype("float64").tolist()
        return factors

    def types(self) -> dict[str, int]:
        """Return {quantisation type: number of tensors}."""
        return dict(sorted(Counter(tensor.type for tensor in self.tensors.values()).items()))


def served_gguf(checkpoint: Path) -> Path | None:
    """Return the GGUF file of a checkpoint folder, which llama.cpp serves; None where it holds none."""
    path = checkpoint / MODEL_FILE
    return path if path.is_file() else None


def read_gguf(path: Path) -> GGUFFile:
    """Read a GGUF file's header, and check that all of it can be dequantised.

    Raises:
        ValueError: it is damaged, no model (an adapter, say), a mixture of experts, of an architecture that
            Transformers does not read from GGUF, split into several files, or holds a quantisation type that the
            `gguf` package does not decode.
    """
    path = Path(path)
    changed = path.stat().st_mtime_ns if path.is_file() else None
    return _read(path, changed)


@functools.lru_cache(maxsize=2)
def _read(path: Path, changed: int | None) -> GGUFFile:
    from gguf.quants import _type_traits
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        reader = reader_of(path)
        metadata: Mapping[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        architecture = str(metadata["general.architecture"])
    except Exception as error:  # the reader raises whatever its damaged numbers lead to
        raise ValueError(f"{path} cannot be read as a GGUF model ({error}); fetch it again") from error
    if (kind := metadata.get(KIND, "model")) != "model":
        raise ValueError(f"{path} is a GGUF file of type {kind}, and no model; name the model's own file")
    if int(metadata.get(f"{architecture}.expert_count", 0)) > 0:
        raise ValueError(
            f"{path} is a mixture of experts ({architecture}), and mixtures are not read from GGUF files here: which "
            "tensor is which expert's matrix is not proven; take the model as safetensors"
        )
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        raise ValueError(
            f"{path} is a GGUF file of the architecture {architecture}, which Transformers does not read from GGUF; "
            "take the model as safetensors"
        )
    if int(metadata.get("split.count", 1)) > 1:
        raise ValueError(f"{path} is one of {metadata['split.count']} parts; join them with llama.cpp's gguf-split")
    tensors = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type
        if kind not in _type_traits and kind.name not in ("F32", "F16", "F64", "BF16"):
            raise ValueError(
                f"{path}: tensor {tensor.name} is stored as {kind.name}, which the gguf package does not decode; take "
                "a file of another type, such as Q4_K_M"
            )
        tensors[tensor.name] = GGUFTensor(tensor.name, kind.name, int(tensor.n_bytes), int(tensor.n_elements))
    prefix = f"{architecture}."
    sizes = {
        name.removeprefix(prefix): int(value)
        for name, value in metadata.items()
        if name.startswith(prefix) and isinstance(value, int)
    }
    sampling, tokenizer = (
        {name.removeprefix(start): metadata[name] for name in sorted(metadata) if name.startswith(start)}
        for start in (SAMPLING, TOKENIZER)
    )
    template, scaling = metadata.get("tokenizer.chat_template"), metadata.get(f"{prefix}rope.scaling.type")
    name = str(metadata.get("general.name", ""))
    return GGUFFile(path, architecture, sizes, tensors, sampling, tokenizer, template, scaling, name)
