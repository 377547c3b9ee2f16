"""Compute one AIRD patch of a compressed checkpoint: a rank-1 PEFT adapter and its statistics."""

from functools import partial

from aird.adapters import write_patch
from aird.architecture import residual_writers
from aird.compression.matrices import dense_matrix
from aird.edits import edited_blocks, make_edits, patch_direction
from aird.files import read_json
from aird.models import load_structure, open_checkpoint
from aird.settings.patches import Patch
from aird.tensor_files import load_tensors

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="original original_manifest original_direction original_record "
        "compressed compressed_manifest own_direction adapter statistics",
        texts="settings",
    )
    settings = Patch.model_validate(arguments.settings)
    open_checkpoint(arguments.original, arguments.original_manifest)
    open_checkpoint(arguments.compressed, arguments.compressed_manifest)
    directions = (arguments.original_direction, arguments.own_direction)
    direction = patch_direction(settings, *(load_tensors(path)[0]["unit"] for path in directions))

    writers = residual_writers(load_structure(arguments.original))
    blocks = edited_blocks(settings, read_json(arguments.original_record)["layer"], len(writers))
    modules = [name for block in blocks for name in writers[block].names]
    edits, statistics = make_edits(
        modules,
        direction,
        partial(dense_matrix, arguments.compressed),
        partial(dense_matrix, arguments.original),
        settings,
    )
    record = {"blocks": blocks, "edits": statistics, "settings": arguments.settings}
    write_patch(edits, record, arguments.adapter, arguments.statistics, arguments.compressed.parent.name)


if __name__ == "__main__":
    main()
