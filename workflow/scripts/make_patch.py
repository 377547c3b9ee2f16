"""Compute one AIRD patch of a compressed checkpoint: a rank-1 PEFT adapter and its statistics."""

from aird.compression.patchable import check_patchable
from aird.directions.direction import load_direction
from aird.models.loading import open_checkpoint
from aird.patching.formula import compute_patch
from aird.patching.patch_files import write_patch
from aird.settings.patches import parse_patch

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="original original_manifest original_direction original_record "
        "compressed compressed_manifest adapter statistics",
        texts="settings",
        many="own",
    )
    settings = parse_patch(arguments.settings)
    manifest = open_checkpoint(arguments.original, arguments.original_manifest)
    check_patchable(open_checkpoint(arguments.compressed, arguments.compressed_manifest))
    direction = load_direction(arguments.original_direction, arguments.original_record)
    own = load_direction(*arguments.own) if arguments.own else None
    edits, record = compute_patch(arguments.original, arguments.compressed, direction, own, settings)
    base = arguments.compressed.parent.name
    write_patch(edits, record, arguments.adapter, arguments.statistics, base, manifest.get("licence"))


if __name__ == "__main__":
    main()
