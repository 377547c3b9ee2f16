"""Merge a patch into its compressed base: a checkpoint that stands alone."""

from aird.files import check_folder, hash_folder, read_json, write_json
from aird.models import TRUST, code_is_trusted, open_checkpoint
from aird.patch_files import write_merged

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="compressed compressed_manifest adapter statistics checkpoint manifest")
    open_checkpoint(arguments.compressed, arguments.compressed_manifest)
    record = read_json(arguments.statistics)
    check_folder(arguments.adapter, record["files"])
    filled = write_merged(arguments.compressed, arguments.adapter, record, arguments.checkpoint)
    files = hash_folder(arguments.checkpoint)
    write_json(arguments.manifest, {"files": files, TRUST: code_is_trusted(), "zeros_filled": filled})


if __name__ == "__main__":
    main()
