"""Fit one AIRD patch of a compressed checkpoint on the direction prompts (aird/fitting.py)."""

from aird.adapters import write_patch
from aird.architecture import residual_writers
from aird.chat import chat_tokens, post_instruction_tokens
from aird.compression.matrices import dense_matrix
from aird.edits import edit_statistics, edited_blocks, patch_direction
from aird.files import read_json, read_json_lines
from aird.fitting import fit_edits, record_projections, targets
from aird.models import load_model, load_tokenizer, open_checkpoint
from aird.prompts import select
from aird.settings.base import PromptSelection
from aird.settings.patches import Patch
from aird.tensor_files import load_tensors

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="original original_manifest original_direction original_record compressed compressed_manifest "
        "own_direction harmful harmless adapter statistics",
        texts="settings seed",
        gpu=True,
    )
    settings = Patch.model_validate(arguments.settings["patch"])
    open_checkpoint(arguments.original, arguments.original_manifest)
    open_checkpoint(arguments.compressed, arguments.compressed_manifest)
    directions = (arguments.original_direction, arguments.own_direction)
    direction = patch_direction(settings, *(load_tensors(path)[0]["unit"] for path in directions))

    tokenizer = load_tokenizer(arguments.original)
    positions = len(post_instruction_tokens(tokenizer))
    selection = PromptSelection(set="fit", split="train", count=arguments.settings["train"])
    prompts, harmful = [], []
    for kind in ("harmful", "harmless"):
        for record in select(read_json_lines(getattr(arguments, kind)), selection, int(arguments.seed)):
            prompts.append(chat_tokens(tokenizer, record["instruction"]))
            harmful.append(kind == "harmful")

    model = load_model(arguments.original)
    writers = residual_writers(model)
    blocks = edited_blocks(settings, read_json(arguments.original_record)["layer"], len(writers))
    modules = [name for block in blocks for name in writers[block].names]
    wanted = targets(record_projections(model, prompts, positions, direction, modules), harmful, settings.alpha)
    del model  # one model in memory at a time
    edits = fit_edits(load_model(arguments.compressed), prompts, wanted, direction, blocks, settings.ridge)
    folders = (arguments.compressed, arguments.original)
    statistics = [edit_statistics(edit, *(dense_matrix(folder, edit.module) for folder in folders)) for edit in edits]
    record = {"blocks": blocks, "edits": statistics, "settings": arguments.settings["patch"]}
    write_patch(edits, record, arguments.adapter, arguments.statistics, arguments.compressed.parent.name)


if __name__ == "__main__":
    main()
