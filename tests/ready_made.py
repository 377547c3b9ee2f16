"""Compressed forms of a tiny model as other tools make them, each packed by a packer that is not this project's.

GPTQ and AWQ are packed by AutoRound, compressed-tensors formats by llm-compressor, GGUF by the `gguf`
package. No packer of DeepSeek's FP8, and none of GPTQ with reordered columns, runs on a CPU: `fp8_block`
and `reordered` follow the formats' public descriptions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
from safetensors.torch import load_file, save_file
from tiny_model import changed_tensors, configured

Tensors = dict[str, torch.Tensor]


def block_matrices(folder: Path) -> Tensors:
    """Return {module: weight} of the linear modules in the blocks of a dense checkpoint, a mixture's routers left out."""
    weights = load_file(folder / "model.safetensors")
    return {
        name.removesuffix(".weight"): weight
        for name, weight in weights.items()
        if name.startswith("model.layers.") and weight.ndim == 2 and not name.endswith(".gate.weight")
    }


def write(
    original: Path, folder: Path, packed: dict[str, Tensors], quantisation: dict[str, Any], **config: Any
) -> Path:
    """Write the checkpoint `original` with the tensors of its quantised modules replaced by packed ones."""
    folder.mkdir(parents=True)
    for path in original.glob("*"):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    tensors = {
        name: tensor
        for name, tensor in load_file(original / "model.safetensors").items()
        if name.removesuffix(".weight") not in packed
    }
    tensors |= {f"{module}.{local}": tensor for module, made in packed.items() for local, tensor in made.items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return configured(folder, quantization_config=quantisation, **config)


def quantities(weight: torch.Tensor, bits: int, size: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scales [d_out, groups], float32 numbers that float16 holds, and zero points of the same shape."""
    groups = weight.float().reshape(len(weight), -1, size)
    if symmetric:
        scales = (groups.abs().amax(-1) / (2 ** (bits - 1) - 1 or 1)).half().float()
        return scales, torch.full_like(scales, 2 ** (bits - 1))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    # A little wider, so that no integer falls out of its range, which AutoRound's packer does not catch.
    scales = (1.02 * (high - low) / (2**bits - 2)).half().float()
    return scales, (-low / scales).round().clamp(1, 2**bits - 2)


def rounded(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int) -> torch.Tensor:
    """Return scale x (integer - zero point), float16: what a packer is asked to store."""
    size = weight.shape[1] // scales.shape[1]
    wide, middle = (values.repeat_interleave(size, dim=1) for values in (scales, zeros))
    integers = (weight.float() / wide + middle).round().clamp(0, 2**bits - 1)
    return ((integers - middle) * wide).half()


def _linear(weight: torch.Tensor) -> torch.nn.Linear:
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.float()
    return linear


def gptq(
    original: Path, folder: Path, bits: int = 4, size: int = 32, symmetric: bool = True, version: str = "gptq"
) -> Tensors:
    """Write a GPTQ checkpoint packed by AutoRound; return {module: matrix that it was asked to store}."""
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    packer: Any = (qlinear_torch_zp if version == "gptq" else qlinear_torch).QuantLinear
    packed, wanted = {}, {}
    for module, weight in block_matrices(original).items():
        scales, zeros = quantities(weight, bits, size, symmetric)
        wanted[module] = rounded(weight, scales, zeros, bits)
        layer = packer(bits, size, weight.shape[1], weight.shape[0], bias=False, g_idx=True)
        layer.device = torch.device("cpu")
        layer.pack(_linear(wanted[module]), scales, zeros.clone(), None, device="cpu")
        packed[module] = {local: getattr(layer, local) for local in ("qweight", "qzeros", "scales", "g_idx")}
    quantisation = {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": symmetric, "desc_act": False}
    write(
        original, folder, packed, quantisation | {"checkpoint_format": version}, torch_dtype="float16", dtype="float16"
    )
    return wanted


def _scattered(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the group of each column, scales, zero points, integers, and the matrix: 4 bits, columns in any order."""
    columns = weight.shape[1]
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(columns))
    scales, zeros = quantities(weight[:, order], 4, 32, symmetric=False)
    groups = torch.empty(columns, dtype=torch.int32)
    groups[order] = torch.arange(columns, dtype=torch.int32) // 32
    wide, middle = scales[:, groups], zeros[:, groups]
    integers = (weight.float() / wide + middle).round().clamp(0, 15).int()
    return groups, scales, zeros, integers, ((integers - middle) * wide).half()


def reordered(original: Path, folder: Path) -> Tensors:
    """Write GPTQ with `desc_act`: columns of a group lie apart, as `g_idx` says."""
    wanted = gptq(original, folder, symmetric=False)
    tensors: Tensors = {}
    for module, weight in block_matrices(original).items():
        groups, scales, zeros, integers, wanted[module] = _scattered(weight)
        # Eight values a word, the first in the lowest bits.
        shifts = 4 * torch.arange(8, dtype=torch.int32)
        words = (integers.T.reshape(len(groups) // 8, 8, -1) << shifts[None, :, None]).sum(1).to(torch.int32)
        below = (zeros.T.int() - 1).reshape(scales.shape[1], -1, 8)
        tensors |= {
            f"{module}.qweight": words,
            f"{module}.qzeros": (below << shifts).sum(-1).to(torch.int32),
            f"{module}.scales": scales.T.half().contiguous(),
            f"{module}.g_idx": groups,
        }
    with changed_tensors(folder) as stored:
        stored |= tensors
    config = json.loads((folder / "config.json").read_text())
    configured(folder, quantization_config=config["quantization_config"] | {"desc_act": True})
    return wanted


def reordered_compressed_tensors(original: Path, folder: Path) -> Tensors:
    """Write what llm-compressor's GPTQ wrote with `actorder: group`, which newer versions gave up."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    packed, wanted = {}, {}
    for module, weight in block_matrices(original).items():
        groups, scales, zeros, integers, wanted[module] = _scattered(weight)
        packed[module] = {
            "weight_packed": pack_to_int32((integers - 8).to(torch.int8), 4),
            "weight_scale": scales.half(),
            "weight_zero_point": pack_to_int32((zeros - 8).to(torch.int8), 4, packed_dim=0),
            "weight_shape": torch.tensor(weight.shape),
            "weight_g_idx": groups,
        }
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
    group = {"targets": ["Linear"], "weights": {**weights, "actorder": "group"}}
    quantisation = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]}
    quantisation |= {"quantization_status": "compressed", "config_groups": {"group_0": group}}
    write(original, folder, packed, quantisation, torch_dtype="float16", dtype="float16")
    return wanted


def awq(original: Path, folder: Path, size: int = 32, scale: Callable[[str], torch.Tensor] | None = None) -> Tensors:
    """Write an AWQ checkpoint packed by AutoRound in AutoAWQ's order; return {module: matrix that it was to store}.

    Args:
        original: the dense checkpoint.
        folder: where to write.
        size: input weights that share a scale.
        scale: from a module to factors of its input channels; the caller scales the norms.
    """
    from auto_round.export.export_to_awq.utils import WQLinear_GEMM

    packed, wanted = {}, {}
    for module, plain in block_matrices(original).items():
        weight = plain.float() * scale(module) if scale is not None else plain.float()
        scales, zeros = quantities(weight, 4, size, symmetric=False)
        wanted[module] = rounded(weight, scales, zeros, 4)
        layer = WQLinear_GEMM.from_linear(
            _linear(wanted[module]), 4, size, scales=scales.T.contiguous(), zeros=zeros.T.contiguous(), device="cpu"
        )
        packed[module] = {local: getattr(layer, local) for local in ("qweight", "qzeros", "scales")}
    quantisation = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm"}
    write(original, folder, packed, quantisation, torch_dtype="float16", dtype="float16")
    return wanted


def fp8_block(original: Path, folder: Path, height: int = 32, width: int = 48) -> Tensors:
    """Write FP8 in blocks as DeepSeek-V3's `config.json` describes it; return {module: float32 matrix}."""
    packed, wanted = {}, {}
    for module, plain in block_matrices(original).items():
        weight, (rows, columns) = plain.float(), plain.shape
        scales = torch.zeros(-(-rows // height), -(-columns // width))
        values, expected = torch.empty_like(weight), torch.empty_like(weight)
        for i, j in numpy.ndindex(*scales.shape):
            block = (slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width))
            scales[i, j] = weight[block].abs().max() / 448
            values[block] = (weight[block] / scales[i, j]).to(torch.float8_e4m3fn).float()
            expected[block] = values[block] * scales[i, j]
        packed[module] = {"weight": values.to(torch.float8_e4m3fn), "weight_scale_inv": scales}
        wanted[module] = expected
    quantisation = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [height, width],
    }
    write(original, folder, packed, quantisation)
    return wanted


def compressed_tensors(original: Path, folder: Path, preset: str) -> Tensors:
    """Write what compressed-tensors packs by one of its preset schemes; return {module: matrix that it decodes}.

    Groups have 32 columns where the preset has 128, and blocks 32 rows and columns.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams

    said = preset_name_to_scheme(preset, ["Linear"]).model_dump()
    for part in (said["weights"], said["input_activations"] or {}):
        if part.get("group_size") == 128:
            part["group_size"] = 32
    if said["weights"]["strategy"] == "block":
        said["weights"]["block_structure"] = [32, 32]
    scheme = QuantizationScheme.model_validate(said)
    scheme.format = infer_module_format(torch.nn.Linear, scheme)
    weights, packer = scheme.weights, BaseCompressor.get_value_from_registry(scheme.format.value)
    packed, wanted = {}, {}
    for module, plain in block_matrices(original).items():
        weight, (rows, columns) = plain.float(), plain.shape
        width = {"group": 32, "tensor_group": 16, "block": 32}.get(weights.strategy, columns)
        height = 32 if weights.strategy == "block" else 1
        parts = weight.reshape(rows // height, height, columns // width, width)
        scale = (448 * 6 / weight.abs().max()).reshape(1) if weights.strategy == "tensor_group" else None
        scales, zeros = calculate_qparams(parts.amin((1, 3)), parts.amax((1, 3)), weights, scale)
        tensors = {"weight": weight, "weight_scale": scales, "weight_global_scale": scale, "weight_zero_point": zeros}
        if weights.symmetric:
            del tensors["weight_zero_point"]
        made = packer.compress({local: each for local, each in tensors.items() if each is not None}, scheme)
        # As llm-compressor stores scales of a model in bfloat16.
        kinds = {torch.float32: torch.bfloat16} if scale is None else {}
        packed[module] = {local: each.to(kinds.get(each.dtype, each.dtype)) for local, each in made.items()}
        wanted[module] = packer.decompress(dict(packed[module]), scheme)["weight"]
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=["lm_head"], format=scheme.format, quantization_status="compressed"
    )
    write(original, folder, packed, config.model_dump(mode="json") | {"quant_method": "compressed-tensors"})
    return wanted


def llm_compressor(original: Path, folder: Path, modifier: Any) -> Path:
    """Write what llm-compressor makes by one modifier, or by a list of them."""
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(original, dtype="auto")
    oneshot(model=model, recipe=modifier if isinstance(modifier, list) else [modifier])
    model.save_pretrained(folder, save_compressed=True)
    AutoTokenizer.from_pretrained(original).save_pretrained(folder)
    return folder


# Where the 16-bit scales of a block stand, in bytes; other types have one at the beginning.
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ2_0": (64,)}


def random_blocks(kind: str, rows: int, columns: int) -> Any:
    """Return random bytes [rows, bytes] of a type that the `gguf` package reads and cannot write, with small scales."""
    size, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    generator = numpy.random.default_rng(rows + columns)
    blocks = generator.integers(0, 256, (rows * columns // size, width), dtype=numpy.uint8)
    for place in SCALES.get(kind, (0,)):
        scales = generator.uniform(0.001, 0.01, len(blocks)).astype(numpy.float16)
        blocks[:, place : place + 2] = scales.view(numpy.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def gguf_of_one_tensor(path: Path, architecture: str, experts: int = 0) -> None:
    """Write a GGUF file of an architecture that holds hardly anything."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    if experts:
        writer.add_expert_count(experts)
    writer.add_tensor("token_embd.weight", numpy.ones((64, 32), dtype=numpy.float32))
    close(writer)


def close(writer: Any) -> None:
    """Write what a GGUF writer was given."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_file(
    original: Path,
    path: Path,
    types: Iterable[str],
    widest: str | None = None,
    sampling: Mapping[str, int | float] | None = None,
    padding: int = 0,
    turned: int | None = None,
    also: Callable[[Any], object] = id,
    **tokenizer_says: Any,
) -> Tensors:
    """Write a llama checkpoint as GGUF, the types of the blocks' matrices in turn.

    Args:
        original: the dense checkpoint.
        path: the file to write.
        types: types that the `gguf` package can write.
        widest: type of the matrices with 256 columns, of random bytes.
        sampling: how the file asks to be sampled, by names of llama.cpp.
        padding: tokens at the end that only fill rows of the embedding, of which there have to be as many.
        turned: features of each head that turn with the position; None is all.
        also: adds to the file's writer what such a model has not.
        tokenizer_says: something else about tokens than real files of such a model have: `model`, `pre`, `tokens`,
            their `token_type`, `scores`, other keys such as `add_space_prefix`, and a `chat_template`; None leaves one
            out.

    Returns:
        {module: float32 matrix that the file holds}, in the order of rows of the original.
    """
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(original)
    tokenizer = AutoTokenizer.from_pretrained(original)
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (sampling or {}).items():
        (writer.add_int32 if isinstance(value, int) else writer.add_float32)(f"general.sampling.{name}", value)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(turned or config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    tokens = [tokenizer.convert_ids_to_tokens(number) for number in range(config.vocab_size - padding)]
    tokens += [f"[PAD{number}]" for number in range(len(tokens), config.vocab_size)]
    says = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "chat_template": tokenizer.chat_template}
    says |= tokenizer_says
    special = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    writer.add_tokenizer_model(says["model"])
    writer.add_tokenizer_pre(says["pre"])
    writer.add_token_list(says["tokens"])
    kinds = [3 if token in special else 1 for token in tokens]
    writer.add_token_types(says.get("token_type") or [*kinds[: len(tokens) - padding], *[5] * padding])
    if says["model"] == "gpt2":
        merges = json.loads((original / "tokenizer.json").read_text())["model"]["merges"]
        writer.add_token_merges([" ".join(merge) if isinstance(merge, list) else merge for merge in merges])
    if says.get("scores") is not None:
        writer.add_token_scores(says["scores"])
    numbers = {"eos_token_id": config.eos_token_id, "bos_token_id": config.bos_token_id, **says}
    for name in ("eos_token_id", "bos_token_id", "add_space_prefix", "add_bos_token"):
        if (number := numbers.get(name)) is not None:
            (writer.add_bool if isinstance(number, bool) else writer.add_uint32)(f"tokenizer.ggml.{name}", number)
    if says["chat_template"] is not None:
        writer.add_chat_template(says["chat_template"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    held, matrices, chosen = {}, block_matrices(original), list(types)
    for name, tensor in load_file(original / "model.safetensors").items():
        module, values = name.removesuffix(".weight"), tensor.float().numpy()
        kind = "F32"
        if module in matrices:
            kind = chosen[list(matrices).index(module) % len(chosen)]
        rotary = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module.split(".")[-1])
        # llama.cpp interleaves the two halves of each head's rotary rows.
        stored = values
        if rotary:
            halves = values.reshape(rotary, 2, -1, values.shape[1])
            stored = halves.swapaxes(1, 2).reshape(values.shape)
        quantised = gguf.GGMLQuantizationType[kind]
        packed = gguf.quants.quantize(numpy.ascontiguousarray(stored), quantised)
        if widest is not None and module in matrices and values.shape[1] == 256:
            quantised = gguf.GGMLQuantizationType[widest]
            packed = random_blocks(widest, *values.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), packed, raw_dtype=quantised)
        if module in matrices:
            back = gguf.quants.dequantize(packed, quantised).reshape(values.shape)
            if rotary:
                back = back.reshape(rotary, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            held[module] = torch.from_numpy(numpy.ascontiguousarray(back))
    also(writer)
    close(writer)
    return held
