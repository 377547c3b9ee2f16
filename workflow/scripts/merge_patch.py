"""Merge a patch into its compressed base: a checkpoint that stands alone."""

from aird.adapters import load_adapter, merge
from aird.files import atomic_folder, check_folder, hash_folder, read_json, write_json
from aird.models import TRUST, code_is_trusted, open_checkpoint

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="compressed compressed_manifest adapter statistics checkpoint manifest")
    open_checkpoint(arguments.compressed, arguments.compressed_manifest)
    check_folder(arguments.adapter, read_json(arguments.statistics)["files"])
    with atomic_folder(arguments.checkpoint) as folder:
        filled = merge(arguments.compressed, load_adapter(arguments.adapter), folder)
    files = hash_folder(arguments.checkpoint)
    write_json(arguments.manifest, {"files": files, TRUST: code_is_trusted(), "zeros_filled": filled})


if __name__ == "__main__":
    main()
