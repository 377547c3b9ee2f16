"""GPTQ by optimum and GPTQModel, which pin other versions than the rest: in a Python environment of their own.

What they write is read back and stored as the other 4-bit recipes are, the same
integers in compressed-tensors' packing, so that Transformers and vLLM need no GPTQModel.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar, Literal

from aird.compression.recipe import Recipe, RecipeInputs
from aird.compression.rounding import FourBitSettings
from aird.support.environments import Environment
from aird.support.files import write_json

if TYPE_CHECKING:
    import torch

    from aird.models.checkpoint import StoredTensor

BITS = 4
LOG_TAIL_LINES = 12

# Run by the other environment's Python, which has none of this project's modules.
WORKER = """
import json, sys
import torch
from optimum.gptq import GPTQQuantizer
from transformers import AutoModelForCausalLM, set_seed

request = json.load(open(sys.argv[1], encoding="utf-8"))
set_seed(0)
trust = request["trust_remote_code"]
# The Hessians are sums over all calibration tokens: in 16 bits they would lose digits.
model = AutoModelForCausalLM.from_pretrained(
    request["source"], dtype=torch.float32, use_safetensors=True, trust_remote_code=trust,
    attn_implementation=request["attention"],
    device_map="auto" if torch.cuda.is_available() else None,
)
prompts = [torch.tensor([prompt]) for prompt in request["calibration"]]
quantizer = GPTQQuantizer(
    bits=4,
    dataset=[{"input_ids": prompt, "attention_mask": torch.ones_like(prompt)} for prompt in prompts],
    group_size=request["group_size"],
    model_seqlen=max(prompt.shape[1] for prompt in prompts),
    sym=True,
    desc_act=False,
    act_group_aware=False,  # else the columns of a group lie apart
    backend="gptq_torch",  # the only one that compiles nothing
)
model = quantizer.quantize_model(model, None)
quantizer.dataset = model.config.quantization_config["dataset"] = None  # tensors, which JSON cannot hold
quantizer.save(model, sys.argv[2])
"""


class OptimumGPTQ(FourBitSettings):
    """GPTQ as optimum and GPTQModel do it, in a Python environment apart (`envs/gptq.lock.txt`)."""

    compresses_experts: ClassVar[bool | None] = False
    recipe: Literal["optimum_gptq"] = "optimum_gptq"

    @property
    def environment(self) -> Environment | None:
        """GPTQModel wants newer versions of torch and Transformers."""
        return Environment(
            name="gptq",
            lock="gptq.lock.txt",
            modules=("optimum.gptq", "gptqmodel"),
            packages=("optimum", "gptqmodel", "torch", "transformers"),
            minutes=60,
        )


def write(settings: OptimumGPTQ, inputs: RecipeInputs, folder: Path) -> None:
    """Write the source's weights quantised by optimum's GPTQ (arXiv:2210.17323), packed by compressed-tensors.

    The integers are GPTQModel's; its float16 scales take the type of the original's matrices.

    Raises:
        RuntimeError: the other environment's process failed.
        ValueError: it wrote something else than symmetric 4-bit integers in contiguous groups.
    """
    from safetensors.torch import save_file

    from aird.models.blocks import outside_blocks
    from aird.models.checkpoint import read_checkpoint
    from aird.models.loading import attention, code_is_trusted, load_structure

    source = inputs.source
    with TemporaryDirectory(prefix=".gptq.", dir=folder) as name:
        request, made = Path(name) / "request.json", Path(name) / "made"
        values: dict[str, object] = {"source": str(source.folder.absolute()), "calibration": inputs.calibration}
        values |= {"group_size": settings.group_size or -1, "trust_remote_code": code_is_trusted()}
        values["attention"] = attention(source.folder)
        write_json(request, values)
        _run(inputs.python, ["-c", WORKER, str(request), str(made)], "optimum's GPTQ failed")
        quantised = read_checkpoint(made).tensors
        modules = source.block_matrices()
        names = {f"{module}.weight" for module in modules}
        tensors: dict[str, torch.Tensor]
        tensors = {name: tensor.load() for name, tensor in source.tensors.items() if name not in names}
        for module in modules:
            tensors |= _packed(quantised, module, source.tensors[f"{module}.weight"].load())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    left_alone = outside_blocks(load_structure(source.folder))
    write_json(folder / "config.json", {"quantization_config": _configuration(settings, left_alone)})


def _packed(quantised: dict[str, StoredTensor], module: str, original: torch.Tensor) -> dict[str, torch.Tensor]:
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    words, zeros, scales, groups = (
        quantised[f"{module}.{local}"].load() for local in ("qweight", "qzeros", "scales", "g_idx")
    )
    rows, columns = original.shape
    # Version 1 of the format stores zero points less one: 8, the middle of 0 to 15, as 7.
    size = columns // len(scales)
    if not bool((_unpacked(zeros.T) == 7).all()) or not torch.equal(groups.long(), torch.arange(columns) // size):
        raise ValueError(f"{module}: GPTQModel wrote no symmetric integers in contiguous groups")
    integers = (_unpacked(words.T) - 8).to(torch.int8)
    return {
        f"{module}.weight_packed": pack_to_int32(integers, BITS).contiguous(),
        f"{module}.weight_scale": scales.T.contiguous().to(original.dtype),
        f"{module}.weight_shape": torch.tensor([rows, columns]),
    }


def _unpacked(words: torch.Tensor) -> torch.Tensor:
    """Return the 4-bit values of int32 words [rows, words], lowest bits first: [rows, 8 x words]."""
    import torch

    shifts = torch.arange(0, 32, BITS, dtype=torch.int32)
    values: torch.Tensor = (words.unsqueeze(-1) >> shifts) & (2**BITS - 1)
    return values.reshape(len(words), -1)


def _configuration(settings: OptimumGPTQ, ignore: list[str]) -> dict[str, object]:
    from compressed_tensors.quantization import QuantizationConfig

    strategy = {"strategy": "channel"} if settings.group_size is None else {"strategy": "group"}
    weights = {"num_bits": BITS, "type": "int", "symmetric": True, "group_size": settings.group_size, **strategy}
    group = {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}
    config = QuantizationConfig(
        config_groups={"group_0": group}, ignore=ignore, format="pack-quantized", quantization_status="compressed"
    )
    return {**config.model_dump(mode="json"), "quant_method": "compressed-tensors"}


def _run(python: Path, arguments: list[str], failure: str) -> str:
    # Its own kernels are for speed on GPUs and would be compiled for minutes.
    environment = {**os.environ, "GPTQMODEL_DISABLE_PACK_EXT": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    result = subprocess.run([str(python), *arguments], capture_output=True, text=True, check=False, env=environment)
    if result.returncode != 0:
        tail = "\n".join(result.stderr.splitlines()[-LOG_TAIL_LINES:])
        raise RuntimeError(f"{failure} in {python}:\n{tail}")
    return result.stdout


RECIPE = Recipe(settings=OptimumGPTQ, title="{settings.weight_bits}-bit GPTQ by optimum", write=write)
