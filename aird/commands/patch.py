"""`aird patch`: repair a compressed model by an adapter of low rank."""

from __future__ import annotations

import argparse
import contextlib
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aird.commands.evaluate import tokenizer_source
from aird.commands.inputs import (
    MODEL_HELP,
    ModelFolder,
    check_same_chat,
    open_model_folder,
    recorded_chat,
    take_gpus_for,
    validated,
)
from aird.commands.search import (
    add_search_arguments,
    calibrated_from,
    describe,
    read_provenance,
    read_search_prompts,
    run_search,
    search_settings,
)
from aird.patching.methods import method
from aird.plugin import METHODS as PATCH_METHODS
from aird.settings.directions import Directions
from aird.settings.patches import Replies
from aird.settings.weights import WeightForm
from aird.support.files import read_json

METHODS = {name: method(name) for name in PATCH_METHODS.names() if not method(name).baseline}
# Settings that can be given, and how they are read.
OPTIONS: dict[str, dict[str, Any]] = {
    "alpha": {"type": float},
    "blocks": {"metavar": "source|upper|all|8,9,10"},
    "depth": {"type": int},
    "ridge": {"type": float},
    "rank": {"type": int},
}
# Without the workflow's `own_source`, which needs the compressed model's own direction.
HELP = {
    "blocks": "blocks to edit: `source`, the one that writes the site of the direction; `upper`, the half nearer the "
    "output; `all`; or indices, from 0",
    "depth": "with `source`: how many blocks, ending with that one",
}
# The methods that are taken where none is named.
WITH_PROMPTS, WITHOUT_PROMPTS = (
    next(name for name, each in METHODS.items() if each.default and ("prompts" in each.needs) == learns)
    for learns in (True, False)
)


def _described(name: str) -> str:
    more = " (needs --harmful and --harmless)" if "prompts" in METHODS[name].needs else ""
    text = f"{name:<11}{METHODS[name].summary}{more}"
    return textwrap.fill(text, 112, initial_indent="  ", subsequent_indent=" " * 13)


SUMMARY = "repair a compressed model: a small adapter that PEFT and vLLM load"
DESCRIPTION = f"""\
Put refusal back into a compressed model, without touching its weights.

An edit of AIRD is W' = W_c + r (row), with r the refusal direction of the original model: a small LoRA adapter of
rank 1, for the matrices that write to the residual stream. The method says where the change comes from:
{chr(10).join(map(_described, METHODS))}
{WITH_PROMPTS} restores most. It is taken where prompts are given, and {WITHOUT_PROMPTS} where only --direction is."""
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
  "needs the instructions": the method of --method learns from prompts; give --harmful and --harmless, or another method
  "no compressed form of the original's", "was not made from": COMPRESSED is rotated, or ORIGINAL is another model
  then measure it: `aird evaluate compressed --adapter adapter ...`, on other prompts, harmless ones included"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("original", help=f"the model before compression: {MODEL_HELP}")
    parser.add_argument("compressed", help="its compressed form: the same")
    parser.add_argument(
        "--direction",
        type=Path,
        metavar="FOLDER",
        help="what `aird direction ORIGINAL` wrote; else it is searched first",
    )
    add_search_arguments(parser, required=False)
    parser.add_argument("--method", choices=list(METHODS), help="where the change comes from")
    for name, form in OPTIONS.items():
        parser.add_argument(f"--{name}", help=_help(name), **form)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="the adapter folder; an earlier one is replaced"
    )
    parser.add_argument(
        "--merged", type=Path, metavar="FOLDER", help="also write the merged checkpoint, to a new folder"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from aird.directions.search import is_search
    from aird.models.loading import write_chat
    from aird.patching.patch_files import write_merged

    _check_folders(arguments.output, arguments.merged)
    given = arguments.harmful is not None and arguments.harmless is not None
    name = arguments.method or (WITH_PROMPTS if given else WITHOUT_PROMPTS)
    settings = _settings(name, arguments)
    prompts = _prompts(name, arguments)
    directions = search_settings(arguments)
    if arguments.direction is not None and not is_search(arguments.direction):
        raise ValueError(f"--direction: {arguments.direction} holds no direction.json; make it with `aird direction`")
    tokenizer = tokenizer_source(arguments, [arguments.original])
    original = open_model_folder(arguments.original, arguments.trust_remote_code, tokenizer=tokenizer)
    compressed = open_model_folder(arguments.compressed, arguments.trust_remote_code, original)
    addressed = [(each.name, each.chat) for each in (original, compressed)]
    if arguments.direction is not None and (provenance := read_provenance(arguments.direction)):
        addressed.append((str(arguments.direction), recorded_chat(provenance)))
    check_same_chat(*addressed)
    check_patchable(original, compressed)
    if arguments.direction is None or "prompts" in METHODS[name].needs:  # else no model runs
        take_gpus_for([original, compressed])
    record = write_patch(
        original,
        compressed,
        settings,
        prompts,
        directions,
        calibrated_from(arguments) if "replies" in METHODS[name].needs else Replies(),
        arguments.seed,
        arguments.output,
        arguments.direction,
    )
    if arguments.merged is not None:
        write_merged(compressed.folder, arguments.output, record, arguments.merged)
        write_chat(compressed.chat, arguments.merged)
        print(f"  merged into     {arguments.merged}")


def _check_folders(output: Path, merged: Path | None) -> None:
    """Check that nothing of the user's stands where folders are to be written, since these replace what is there.

    Raises:
        ValueError: a folder holds something else than an earlier adapter of this command, or one lies in the other.
    """
    _check_replaceable("--output", output, statistics_of(output) if output.name else None)
    if merged is None:
        return
    _check_replaceable("--merged", merged, None)
    one, other = output.resolve(), merged.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise ValueError(f"--merged: {merged} and --output {output} lie in each other; name two folders side by side")


def _check_replaceable(option: str, folder: Path, statistics: Path | None) -> None:
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ValueError(f"{option}: {folder} is the folder that you work in, or holds it; name a new folder in it")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{option}: {folder} is no folder, but a file or a link; name a new folder")
    present = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if statistics is not None and present and statistics.is_file():
        present -= set(read_json(statistics).get("files", ()))  # what this command wrote there before
    if present:
        raise ValueError(
            f"{option}: {folder} exists already and holds {min(present)}, which would be lost; name a new folder, or "
            "remove this one"
        )


def statistics_of(output: Path) -> Path:
    """Return the file that stands beside an adapter's folder and says what it was made of."""
    return output.with_name(f"{output.name}.statistics.json")


def check_patchable(original: ModelFolder, compressed: ModelFolder) -> None:
    """Check that edits of a compressed model's matrices mean what they would in the original's, before any is learnt.

    Raises:
        ValueError: it is a wrapper of vision and language, whose modules have other names than a patch's; or its
            matrices are no compressed form of the original's.
    """
    from aird.compression.ready_made import patch_obstacle

    if compressed.form == WeightForm.TEXT_MODEL:
        raise ValueError(
            f"{compressed.name} wraps a text model, and a patch would have that one's names, under which the wrapper "
            "has no modules; give the text model itself, such as the checkpoint that the workflow's import writes "
            "(results/models/NAME/original/checkpoint)"
        )
    if reason := patch_obstacle(compressed.source, compressed.folder, original.folder):
        raise ValueError(f"{compressed.name} can be measured but not patched: {reason}")


def write_patch(
    original: ModelFolder,
    compressed: ModelFolder,
    settings: Any,
    prompts: dict[str, list[dict[str, Any]]],
    directions: Directions,
    replies: Replies,
    seed: int,
    output: Path,
    direction: Path | None = None,
) -> dict[str, Any]:
    """Write a patch and its statistics, and return these.

    Args:
        original: the model before compression.
        compressed: the model to repair.
        settings: of the patch; their `method` says how it is made.
        prompts: records of both classes, with splits; empty where neither the search nor the method needs them.
        directions: sizes and filters of the search; a closed form sees as many prompts.
        replies: how many a calibration learns from and is chosen by.
        seed: of every random draw.
        output: the adapter's folder; the statistics are a file beside it.
        direction: a folder that `aird direction` wrote; None searches the original's direction first, where the
            method needs one.

    Raises:
        ValueError: the two models do not fit together, or too few prompts.
    """
    from aird.directions.search import save_search
    from aird.models.card_metadata import read_licence
    from aird.patching.method import ABSENT, PatchInputs
    from aird.patching.patch_files import make_patch

    made_by = METHODS[settings.method]
    statistics = statistics_of(output)
    with contextlib.ExitStack() as stack:
        if direction is None and "direction" in made_by.needs:
            direction = Path(stack.enter_context(TemporaryDirectory()))
            search = run_search(original, prompts, directions, seed)
            save_search(search, direction)
            print(describe(search))
        print(f"Patching {compressed.name} by {settings.method} ...", flush=True)
        inputs = PatchInputs(
            base=compressed.base,
            revision=compressed.commit,
            original=original.folder,
            compressed=compressed.folder,
            direction=(direction / "direction.safetensors", direction / "direction.json") if direction else ABSENT,
            prompts=prompts,
            sizes=made_by.sizes(directions, replies),
            seed=seed,
        )
        licence = read_licence(compressed.source) or read_licence(original.source)
        provenance = {"original": original.record(), "compressed": compressed.record()}
        record: dict[str, Any] = make_patch(settings, inputs, output, statistics, licence, provenance)
    edited = [edit["module"] for edit in record["edits"]]
    print(f"  edited          {', '.join(edited[:4])}{' ...' if len(edited) > 4 else ''}")
    print(f"  written to      {output}, {statistics}")
    return record


def _blocks(text: str) -> Any:
    if text == "own_source":
        raise ValueError(
            "--blocks: own_source needs the compressed model's own direction, which only the workflow gives; run "
            "`aird direction` on that model and name the block, one below the layer of its site"
        )
    if text in ("source", "upper", "all"):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--blocks: {text} is not source, upper, all or indices such as 8,9,10") from None


def _help(option: str) -> str:
    """Return a setting's description, with its defaults and the methods that have it."""
    known = {name: chosen.settings.model_fields for name, chosen in METHODS.items()}
    defaults = {name: fields[option].default for name, fields in known.items() if option in fields}
    first, common = next(iter(defaults.items()))
    said = [f"default: {common}", *(f"{value} for {name}" for name, value in defaults.items() if value != common)]
    if len(defaults) < len(METHODS):
        said.append(f"of {', '.join(defaults)} only")
    description = HELP.get(option) or str(known[first][option].description).rstrip(".")
    return f"{description} ({'; '.join(said)})"


def _settings(name: str, arguments: argparse.Namespace) -> Any:
    """Return the settings of the patch: what was given, and the method's own defaults.

    Raises:
        ValueError: one that the method does not have, or a value that cannot be.
    """
    kind = METHODS[name].settings
    values = {option: getattr(arguments, option) for option in OPTIONS if getattr(arguments, option) is not None}
    for option in values:
        if option not in kind.model_fields:
            raise ValueError(f"--{option} is no setting of --method {name}; leave it out, or name another method")
    if "blocks" in values:
        values["blocks"] = _blocks(values["blocks"])
    return validated(kind, values)


def _prompts(name: str, arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return the direction prompts where something needs them.

    Raises:
        ValueError: they are needed and missing.
    """
    needs = METHODS[name].needs
    replies = calibrated_from(arguments) if "replies" in needs else None
    if arguments.direction is None:
        return read_search_prompts(arguments, replies)
    if "prompts" not in needs:
        return {}
    if arguments.harmful is None or arguments.harmless is None:
        raise ValueError(
            f"--method {name} needs the instructions that it is fitted on: give --harmful and --harmless, "
            "or another method"
        )
    return read_search_prompts(arguments, replies, validation="replies" in needs)
