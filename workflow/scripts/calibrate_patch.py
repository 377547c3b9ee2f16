"""Calibrate one AIRD patch of a compressed checkpoint on the original's replies (aird/patching/calibrated_patch.py)."""

from aird.compression.patchable import check_patchable
from aird.directions.direction import load_direction
from aird.models.loading import load_tokenizer, open_checkpoint
from aird.patching.calibrated_patch import calibrate_patch
from aird.patching.patch_files import write_patch
from aird.patching.replies import OF_ORIGINAL, load_replies, reply_instructions
from aird.settings.patches import Calibrate, Replies
from aird.support.files import read_json_lines

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="arithmetic original original_manifest original_direction original_record compressed compressed_manifest "
        "replies harmful harmless adapter statistics",
        texts="settings seed",
        many="own",
        gpu=True,
    )
    settings = Calibrate.model_validate(arguments.settings["patch"])
    sizes = Replies.model_validate(arguments.settings["replies"])
    seed = int(arguments.seed)
    manifest = open_checkpoint(arguments.original, arguments.original_manifest)
    check_patchable(open_checkpoint(arguments.compressed, arguments.compressed_manifest))
    direction = load_direction(arguments.original_direction, arguments.original_record)
    own = load_direction(*arguments.own) if arguments.own else None
    tokenizer = load_tokenizer(arguments.original)
    records = {kind: read_json_lines(getattr(arguments, kind)) for kind in ("harmful", "harmless")}
    replies = load_replies(arguments.replies, tokenizer, reply_instructions(records, OF_ORIGINAL, sizes, seed))
    edits, record = calibrate_patch(
        arguments.original, arguments.compressed, direction, own, replies, records, sizes, settings, seed
    )
    base = arguments.compressed.parent.name
    write_patch(edits, record, arguments.adapter, arguments.statistics, base, manifest.get("licence"))


if __name__ == "__main__":
    main()
