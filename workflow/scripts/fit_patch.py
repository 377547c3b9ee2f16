"""Fit one AIRD patch of a compressed checkpoint on the direction prompts (aird/patching/fitting.py)."""

from aird.compression.patchable import check_patchable
from aird.directions.direction import load_direction
from aird.models.loading import open_checkpoint
from aird.patching.fitted_patch import fit_patch
from aird.patching.patch_files import write_patch
from aird.prompts.sets import select_instructions
from aird.settings.base import PromptSelection
from aird.settings.patches import parse_patch
from aird.support.files import read_json_lines

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="arithmetic original original_manifest original_direction original_record compressed compressed_manifest "
        "harmful harmless adapter statistics",
        texts="settings seed",
        many="own",
        gpu=True,
    )
    settings = parse_patch(arguments.settings["patch"])
    manifest = open_checkpoint(arguments.original, arguments.original_manifest)
    check_patchable(open_checkpoint(arguments.compressed, arguments.compressed_manifest))
    direction = load_direction(arguments.original_direction, arguments.original_record)
    own = load_direction(*arguments.own) if arguments.own else None
    selection = PromptSelection(set="fit", split="train", count=arguments.settings["train"])
    harmful, harmless = (
        select_instructions(read_json_lines(path), selection, int(arguments.seed))
        for path in (arguments.harmful, arguments.harmless)
    )
    edits, record = fit_patch(arguments.original, arguments.compressed, direction, own, harmful, harmless, settings)
    base = arguments.compressed.parent.name
    write_patch(edits, record, arguments.adapter, arguments.statistics, base, manifest.get("licence"))


if __name__ == "__main__":
    main()
