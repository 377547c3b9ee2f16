"""`aird patch`: repair a compressed model by a rank-1 adapter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aird.commands.inputs import open_model_folder, read_prompts, validated, with_splits
from aird.commands.search import add_search_arguments, describe, read_search_prompts, run_search
from aird.settings.patches import Calibrate, Fit, Project, Replies, Scale

RankOne = Scale | Project | Fit | Calibrate
METHODS: dict[str, type[RankOne]] = {
    "scale": Scale,
    "project": Project,
    "fit": Fit,
    "calibrate": Calibrate,
}

SUMMARY = "repair a compressed model: a rank-1 adapter that PEFT and vLLM load"
DESCRIPTION = """\
Put refusal back into a compressed model, without touching its weights.

Every edit is W' = W_c + r (row), with r the refusal direction of the original model: a LoRA adapter of rank 1 and
a few KB, for the matrices that write to the residual stream. The method says where the row comes from:
  scale     a multiple of what the compressed matrix itself writes along r (one block by default)
  project   the difference to what the original matrix writes along r
  fit       ridge regression on the direction prompts, module by module, so that the compressed model writes
            along r what the original wrote (needs --harmful and --harmless)
  calibrate learnt by gradient from the original's own replies, with a strength chosen on validation prompts so
            that over-refusal stays near the original's (needs --harmful and --harmless; restores most)"""
EPILOG = """\
examples:
  aird patch Qwen/Qwen2.5-1.5B-Instruct my-quantised-model --harmful harmful.txt --harmless harmless.txt \\
      --output adapter
  aird patch original compressed --direction direction --method scale --alpha 1 --output adapter
      (direction is a folder that `aird direction original` wrote; nothing runs but the formula)
  aird patch original compressed --direction direction --method scale --merged merged --output adapter
      (also a checkpoint that stands alone, for servers without LoRA)

files:
  adapter/                   adapter_config.json, adapter_model.safetensors, README.md (model card)
  adapter.statistics.json    what each edit changes, size and SHA-256 of the adapter's files

use the adapter:
  base = AutoModelForCausalLM.from_pretrained("compressed"); base(**base.dummy_inputs)  (unpacks packed weights)
  PeftModel.from_pretrained(base, "adapter")
  python -m vllm.entrypoints.openai.api_server --model compressed --enable-lora --lora-modules aird=adapter

common errors:
  "needs the instructions": --method fit is fitted on prompts; give --harmful and --harmless, or another method
  "do not fit together": ORIGINAL is not the model that COMPRESSED was made from
  then measure it: `aird evaluate compressed --adapter adapter ...`, on other prompts, harmless ones included"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("original", help="the model before compression: folder or hub id")
    parser.add_argument("compressed", help="its compressed form: folder or hub id")
    parser.add_argument(
        "--direction", type=Path, metavar="FOLDER", help="what `aird direction ORIGINAL` wrote; else it is found first"
    )
    add_search_arguments(parser, required=False)
    parser.add_argument(
        "--method",
        choices=list(METHODS),
        help="default: calibrate where prompts are given, scale where only --direction is",
    )
    parser.add_argument("--alpha", type=float, default=1.0, help="strength; calibrate chooses its own (default: 1)")
    parser.add_argument(
        "--blocks", help="source, upper, all, or indices such as 8,9,10 (default: source; upper for calibrate)"
    )
    parser.add_argument("--depth", type=int, default=1, help="with source: how many blocks, ending there (default: 1)")
    parser.add_argument("--ridge", type=float, default=0.01, help="penalty of a fit (default: 0.01)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the adapter folder")
    parser.add_argument("--merged", type=Path, metavar="FOLDER", help="also write the merged checkpoint")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from aird.directions.direction import load_direction
    from aird.directions.search import is_search
    from aird.patching.calibrated_patch import calibrate_patch, original_replies
    from aird.patching.card_metadata import read_licence
    from aird.patching.fitted_patch import fit_patch
    from aird.patching.formula import compute_patch
    from aird.patching.patch_files import write_merged, write_patch
    from aird.support.files import read_json

    settings = _settings(arguments)
    prompts = _prompts(arguments, settings)
    if arguments.direction is not None and not is_search(arguments.direction):
        raise ValueError(f"--direction: {arguments.direction} holds no direction.json; make it with `aird direction`")
    original = open_model_folder(arguments.original, arguments.trust_remote_code)
    compressed = open_model_folder(arguments.compressed, arguments.trust_remote_code)
    if arguments.direction is not None:
        direction = load_direction(
            arguments.direction / "direction.safetensors", arguments.direction / "direction.json"
        )
    else:
        found = run_search(original, prompts, arguments, None)
        print(describe(found))
        direction = found.direction
    print(f"Patching {compressed.name} by {settings.method} ...", flush=True)
    if isinstance(settings, Calibrate):
        sizes = validated(
            Replies,
            {
                "train_harmful": arguments.train,
                "train_harmless": arguments.train,
                "validation": arguments.validation,
            },
        )
        replies = original_replies(original.folder, prompts, sizes, arguments.seed)
        edits, record = calibrate_patch(
            original.folder, compressed.folder, direction, None, replies, prompts, sizes, settings, arguments.seed
        )
    elif isinstance(settings, Fit):
        fitted_on = [_instructions(prompts[kind], arguments) for kind in ("harmful", "harmless")]
        edits, record = fit_patch(
            original.folder, compressed.folder, direction, None, fitted_on[0], fitted_on[1], settings
        )
    else:
        edits, record = compute_patch(original.folder, compressed.folder, direction, None, settings)
    statistics = arguments.output.with_name(f"{arguments.output.name}.statistics.json")
    base = compressed.name if compressed.commit else str(compressed.folder.absolute())
    record |= {"original": original.record(), "compressed": compressed.record()}
    licence = read_licence(compressed.folder) or read_licence(original.folder)
    write_patch(edits, record, arguments.output, statistics, base, licence)
    print(f"  edited          {', '.join(edit.module for edit in edits[:4])}{' ...' if len(edits) > 4 else ''}")
    print(f"  written to      {arguments.output}, {statistics}")
    if arguments.merged is not None:
        write_merged(compressed.folder, arguments.output, read_json(statistics), arguments.merged)
        print(f"  merged into     {arguments.merged}")


def _settings(arguments: argparse.Namespace) -> RankOne:
    given = arguments.harmful is not None and arguments.harmless is not None
    method = METHODS[arguments.method or ("calibrate" if given else "scale")]
    values: dict[str, Any] = {"depth": arguments.depth, "alpha": arguments.alpha, "ridge": arguments.ridge}
    blocks: Any = arguments.blocks
    if blocks is not None and blocks not in ("source", "upper", "all"):
        try:
            blocks = [int(part) for part in blocks.split(",")]
        except ValueError:
            raise ValueError(f"--blocks: {blocks} is not source, upper, all or indices such as 8,9,10") from None
    if blocks is not None:
        values["blocks"] = blocks
    return validated(method, {name: value for name, value in values.items() if name in method.model_fields})


def _prompts(arguments: argparse.Namespace, settings: RankOne) -> dict[str, list[dict[str, Any]]]:
    """Return the direction prompts where something needs them.

    Raises:
        ValueError: they are needed and missing.
    """
    if arguments.direction is None:
        return read_search_prompts(arguments)
    if not isinstance(settings, Fit | Calibrate):
        return {}
    if arguments.harmful is None or arguments.harmless is None:
        raise ValueError(
            f"--method {settings.method} needs the instructions that it is fitted on: give --harmful and --harmless, "
            "or another method"
        )
    sizes = {"train": arguments.train}
    if isinstance(settings, Calibrate):
        sizes["validation"] = arguments.validation
    return {
        kind: with_splits(read_prompts(getattr(arguments, kind), kind, arguments.field), kind, sizes, arguments.seed)
        for kind in ("harmful", "harmless")
    }


def _instructions(records: list[dict[str, Any]], arguments: argparse.Namespace) -> list[str]:
    """Return the training instructions, the ones that the direction rests on."""
    from aird.prompts.sets import select_instructions
    from aird.settings.base import PromptSelection

    selection = PromptSelection(set="fit", split="train", count=arguments.train)
    return select_instructions(records, selection, arguments.seed)
