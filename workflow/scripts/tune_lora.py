"""Tune the LoRA baseline of one compressed checkpoint (aird/patching/lora.py)."""

from aird.compression.patchable import check_patchable
from aird.models.loading import open_checkpoint
from aird.patching.lora import tune_lora
from aird.patching.patch_files import write_baseline
from aird.prompts.sets import select_instructions
from aird.settings.base import PromptSelection
from aird.settings.patches import LoRA
from aird.support.files import read_json, read_json_lines

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="compressed compressed_manifest original_manifest harmful harmless adapter statistics",
        texts="settings seed",
        gpu=True,
    )
    settings = LoRA.model_validate(arguments.settings["patch"])
    check_patchable(open_checkpoint(arguments.compressed, arguments.compressed_manifest))
    selection = PromptSelection(set="tuning", split="train", count=arguments.settings["train"])
    harmful, harmless = (
        select_instructions(read_json_lines(path), selection, int(arguments.seed))
        for path in (arguments.harmful, arguments.harmless)
    )
    base = arguments.compressed.parent.name
    write_baseline(
        settings,
        lambda folder: tune_lora(arguments.compressed, harmful, harmless, settings, folder, base),
        arguments.adapter,
        arguments.statistics,
        base,
        read_json(arguments.original_manifest).get("licence"),
    )


if __name__ == "__main__":
    main()
