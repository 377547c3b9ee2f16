"""Tiny models of every architecture of Transformers with a causal language model, and what is measured on each.

`python tests/models/families.py` (with PYTHONPATH=.:tests) prints the table of docs/models.md; `--write` puts it there.

Every weight is random, those of norms too: with gains of 1 an error at a norm does not show. For each family:

    remains   the largest share of a token's residual stream that lies along r behind any block while r is ablated
    effect    cosine with r of what an edit of one writer, or of all experts of one block, changes behind its block, all other contributions held as
              they were, beyond a rescaling of that writer's old contribution (which a norm behind the writer brings);
              the smallest over all writers. `whole` is the same with the rescaling left in.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from patches import unit_vector
from tiny_model import randomise
from torch import nn
from transformers import AutoModelForCausalLM, logging
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from aird.inference.hooks import ablation, hooks, on_output
from aird.models.blocks import ArchitectureError, Writers, decoder_blocks
from aird.models.checkpoint import read_checkpoint
from aird.models.experts import is_transposed
from aird.models.importing import prove_structure
from aird.models.structure import residual_writers, writer_gains, writer_modules
from aird.models.text_model import is_wrapper
from aird.patching.edits import rank_one_edit
from aird.patching.methods import parse_patch

QUICK = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2", "mixtral", "gpt_oss", "phi3")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
MARKS = ("<!-- table: PYTHONPATH=.:tests python tests/models/families.py --write -->", "<!-- end of the table -->")
LARGEST = 30_000_000  # parameters of a model that is run

# By all names that configurations have for them; each takes what it knows.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "attention_hidden_size"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "ffn_hidden_size", "shared_intermediate_size"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "decoder_layers", "encoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("moe_intermediate_size", "expert_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "moe_num_shared_experts", "mamba_n_groups"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "v_head_dim", "mamba_d_state", "state_size", "ssm_state_size"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "index_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "encoder_attention_heads": 4,
    "vocab_size": 99,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 16,
    "index_topk": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_expand": 2,
    "expand": 2,
    "first_k_dense_replace": 1,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "residual_multiplier": 0.3,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
GEMMA4 = {"vocab_size_per_layer_input": 99, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
SPECIAL: dict[str, dict[str, Any]] = {
    "falcon_h1": {"mamba_d_ssm": 128, "ssm_out_multiplier": 0.5, "attention_out_multiplier": 0.7},
    "gemma3": {"vision_config": VISION},
    "gemma3n_text": {**GEMMA4, "num_hidden_layers": 5, "laurel_rank": 8},
    "gemma4_text": GEMMA4,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"] * 2},
    "zamba2": {"layer_types": ["mamba", "hybrid"] * 2, "mamba_d_state": 16, "use_mem_rope": False},
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 8, "n_groups": 1},
}
SLOW = ("kimi_linear",)


class NotMade(Exception):
    """This file does not know how to make a small model of a family, or one that runs."""


@dataclass(frozen=True)
class Measured:
    """What one family did.

    Attributes:
        family: Transformers' model type.
        refusal: why it is refused; empty where it is right.
        remains, effect, whole: see above; NaN where nothing can be edited.
        edited: which outputs of its blocks are edited.
    """

    family: str
    refusal: str
    remains: float = float("nan")
    effect: float = float("nan")
    whole: float = float("nan")
    edited: str = ""

    @property
    def right(self) -> bool:
        """Whether both numbers are what docs/models.md promises."""
        return not self.refusal and self.remains < 1e-4 and not self.effect < 0.999

    @property
    def proper(self) -> bool:
        """Whether it is right or refused."""
        return self.right or bool(self.refusal)


def families() -> list[str]:
    """Return Transformers' model types that have a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_configuration(family: str, **more: Any) -> Any:
    """Return a configuration of a few thousand weights; any error means that this file does not know how."""
    kind = CONFIG_MAPPING[family]
    sizes = _known(kind)
    text = getattr(kind, "sub_configs", {}).get("text_config")
    if text is not None:
        sizes["text_config"] = dict(SIZES) if text.__name__ == "AutoConfig" else _known(text)
    return kind(**{**sizes, **SPECIAL.get(family, {}), **more})


def _known(kind: Any) -> dict[str, Any]:
    known = set(getattr(kind, "attribute_map", {}))
    for parent in kind.__mro__:
        known |= set(getattr(parent, "__annotations__", {}))
    sizes = {name: value for name, value in SIZES.items() if name in known}
    if "kv_lora_rank" in known:  # latent attention: every head has keys, and a head's size is that of its rotary part
        sizes |= {"num_key_value_heads": 4}
        sizes.pop("head_dim", None)
    return sizes


def tiny_family(family: str, seed: int = 0, **more: Any) -> Any:
    """Return a model of a family in float32 with random weights, in evaluation mode."""
    configuration = tiny_configuration(family, **more)
    with torch.device("meta"):
        count = sum(each.numel() for each in AutoModelForCausalLM.from_config(configuration).parameters())
    if count > LARGEST:
        raise ValueError(f"{count} parameters")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(configuration, dtype=torch.float32).eval()
    randomise(model, seed)
    return model


def tokens(model: Any) -> torch.Tensor:
    """Return ids of two rows of eleven tokens."""
    count = model.get_input_embeddings().weight.shape[0]
    return torch.randint(3, count, (2, 11), generator=torch.Generator().manual_seed(2))


@contextlib.contextmanager
def recorded(blocks: list[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Record what leaves each block, [rows, tokens, d_model] float64."""
    states: list[torch.Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output).double())

    with hooks(forward=[(block, keep) for block in blocks]):
        yield states


@torch.no_grad()
def remains(model: Any, unit: torch.Tensor) -> float:
    """Return the largest share of a token's states that lies along r behind any block while r is ablated."""
    blocks = list(decoder_blocks(model))
    with ablation(blocks, writer_modules(model), unit), recorded(blocks) as states:
        model(input_ids=tokens(model), use_cache=False)
    return max(((each @ unit).abs() / each.norm(dim=-1)).max().item() for each in states)


@torch.no_grad()
def effects(
    model: Any, unit: torch.Tensor, writers: list[Writers], with_gains: bool = True
) -> list[tuple[float, float]]:
    """Return the cosine with r of what an edit (`scale`, half of what a writer writes along r already) changes, for
    each writer: beyond a rescaling of its old contribution, and with it.
    """
    blocks, inputs = list(decoder_blocks(model)), {"input_ids": tokens(model), "use_cache": False}
    gains, measured = writer_gains(model) if with_gains else {}, []
    patch: Any = parse_patch({"method": "scale", "alpha": 0.5})
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return on_output(lambda output: kept.setdefault(name, output.clone()).clone())

    modules = {each.module: model.get_submodule(each.module) for block in writers for each in block.contributions}
    with recorded(blocks) as plain, hooks(forward=[(module, keep(name)) for name, module in modules.items()]):
        model(**inputs)
    for index, block in enumerate(writers):
        for chosen in block.contributions:
            name = chosen.writer or chosen.experts
            if name is None:
                continue
            parameter = model.get_parameter(chosen.experts or f"{name}.weight")
            weight = parameter.clone()
            matrices = parameter.transpose(1, 2) if chosen.experts and is_transposed(model, name) else parameter
            edit = rank_one_edit(name, unit, matrices.clone(), matrices, patch, gains.get(name))
            matrices += edit.matrix()
            # From here on they return what was kept, all but the chosen one.
            held = [(module, keep(name)) for name, module in modules.items() if name != chosen.module]
            with recorded(blocks) as edited, hooks(forward=held):
                model(**inputs)
            parameter.copy_(weight)
            measured.append(_cosines(edited[index] - plain[index], kept[chosen.module].double(), unit))
    return measured


def _cosines(change: torch.Tensor, contribution: torch.Tensor, unit: torch.Tensor) -> tuple[float, float]:
    """Fit change = rescaling x contribution + m r for every token; return the cosines of the rest and of the whole."""
    width = change.shape[-1]
    change, contribution = change.reshape(-1, width), contribution.reshape(-1, width)
    base = torch.stack([contribution, unit.expand_as(contribution)], dim=-1)
    fitted = torch.linalg.lstsq(base, change.unsqueeze(-1)).solution.squeeze(-1)
    beyond = change - fitted[:, :1] * contribution
    return tuple(((each @ unit).norm() / each.norm()).item() for each in (beyond, change))  # type: ignore[return-value]


@torch.no_grad()
def running(family: str) -> tuple[Any, Any]:
    """Return a tiny model of a family that runs, and one without weights.

    Raises:
        NotMade: whatever a configuration finds wrong with sizes that are not its own.
    """
    try:
        model = tiny_family(family)
        model(input_ids=tokens(model), use_cache=False)
        with torch.device("meta"):
            return model, AutoModelForCausalLM.from_config(tiny_configuration(family)).eval()
    except Exception as error:  # Transformers' own code alone
        raise NotMade(f"{family}: {error}") from error


def measure(family: str) -> Measured:
    """Measure one family.

    Raises:
        NotMade: as of `running`. What else is raised is a fault of aird.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        model, empty = running(family)
        try:
            # As at import: what is read of a model without weights must be the same.
            read, writers = residual_writers(empty), residual_writers(model)
            if read != writers:
                return Measured(family, f"{family}: read as {read} without weights, as {writers} with them")
            # Of a wrapper the import takes the text model out first.
            if any(block.names or block.experts for block in writers) and not is_wrapper(tiny_configuration(family)):
                _prove_stored(model)
        except ArchitectureError as error:
            return Measured(family, str(error))
        unit = unit_vector(width=model.config.get_text_config().hidden_size)
        cosines = effects(model, unit, writers) or [(float("nan"), float("nan"))]
        whole = min(each for _, each in cosines)
        return Measured(family, "", remains(model, unit), min(each for each, _ in cosines), whole, describe(writers))


def _prove_stored(model: Any) -> None:
    """Prove a model as the import does, from files as its authors would write them, and find its matrices there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        model.save_pretrained(folder)
        prove_structure(folder)
        assert read_checkpoint(folder).block_matrices()


def measure_all() -> dict[str, Measured | None]:
    """Measure every family; None for one that this file does not know how to make small."""
    measured: dict[str, Measured | None] = {}
    for family in families():
        try:
            measured[family] = None if family in SLOW else measure(family)
        except NotMade:
            measured[family] = None
    return measured


def describe(writers: list[Writers]) -> str:
    """Return which outputs of a family's blocks are edited."""
    contributions = [(block.block, each) for block in writers for each in block.contributions]
    whole = [
        f"`{each.module.removeprefix(f'{block}.')}`"
        for block, each in contributions
        if not (each.writer or each.experts)
    ]
    if len(whole) == len(contributions):
        return "none"
    whole += ["shared experts"] if any(each.experts and each.obstacle for _, each in contributions) else []
    notes = ["experts too"] if any(each.experts for _, each in contributions) and not whole else []
    notes += ["before norms"] if any(each.norm for _, each in contributions) else []
    return ", ".join([f"all but {', '.join(dict.fromkeys(whole))}" if whole else "all", *notes])


def outcome(measured: Measured) -> tuple[str, str]:
    """Return the state of a family and what says why; no measured number, so that it is the same on every machine."""
    if measured.refusal:
        reason = re.sub(r"^/\S*/model: | \((seen|stored are).*|, found .*", "", measured.refusal).rpartition("): ")[2]
        return "refused", reason
    return "right" if measured.effect == measured.effect else "right, no edits", measured.edited


def table(outcomes: dict[str, tuple[str, str] | None]) -> str:
    """Return the table of docs/models.md: families of one outcome share a line, the largest first."""
    alike: dict[tuple[str, str], list[str]] = {}
    for family, found in outcomes.items():
        if found is not None:
            alike.setdefault(found, []).append(family)
    counts = Counter(found[0].partition(",")[0] for found in outcomes.values() if found is not None)
    unknown = [family for family, found in outcomes.items() if found is None]
    states = ("right", "right, no edits", "refused")
    rows = sorted(alike.items(), key=lambda each: (states.index(each[0][0]), -len(each[1]), each[1]))
    return "\n".join(
        [
            f"{counts['right']} families are right, {counts['refused']} are refused. No tiny model was made of "
            f"{len(unknown)} more, which are proven or refused at import like any other: {', '.join(unknown)}.",
            "",
            *(f"- **{', '.join(names)}** ({state}): {what}" for (state, what), names in rows),
        ]
    )


def written() -> dict[str, tuple[str, str]]:
    """Return the outcome of each family that docs/models.md has."""
    text = PAGE.read_text(encoding="utf-8").partition(MARKS[0])[2].partition(MARKS[1])[0]
    rows = re.findall(r"^- \*\*(.*?)\*\* \((.*?)\): (.*)$", text, re.MULTILINE)
    return {name: (state, what) for names, state, what in rows for name in names.split(", ")}


def main() -> None:
    """Print the table, or write it into docs/models.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/models.md again")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    text = table({family: each and outcome(each) for family, each in measure_all().items()})
    if not arguments.write:
        print(text)
        return
    before, start, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    PAGE.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
