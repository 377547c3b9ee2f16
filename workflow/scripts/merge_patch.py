"""Merge a patch into its compressed base: a checkpoint that stands alone."""

from aird.compression.measure import measure
from aird.models.loading import TRUST, code_is_trusted, open_checkpoint
from aird.patching.patch_files import write_merged
from aird.support.files import check_folder, hash_folder, read_json, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="compressed compressed_manifest adapter statistics checkpoint manifest")
    begin_job(arguments)
    open_checkpoint(arguments.compressed, arguments.compressed_manifest)
    statistics = read_json(arguments.statistics)
    check_folder(arguments.adapter, statistics["files"])
    filled = write_merged(arguments.compressed, arguments.adapter, statistics, arguments.checkpoint)
    files = hash_folder(arguments.checkpoint)
    total = measure(arguments.checkpoint)["total"]
    record = {"files": files, TRUST: code_is_trusted(), "zeros_filled": filled, "total": total}
    write_json(arguments.manifest, record)


if __name__ == "__main__":
    main()
