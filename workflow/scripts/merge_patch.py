"""Merge a patch into its compressed base: a checkpoint that stands alone."""

from pathlib import Path

from aird.compression.measure import measure
from aird.models.loading import TRUST, code_is_trusted, open_checkpoint
from aird.patching.patch_files import write_merged
from aird.support.files import check_folder, hash_folder, read_json, write_json

from arguments import run


def main(
    compressed: Path, compressed_manifest: Path, adapter: Path, statistics: Path, checkpoint: Path, manifest: Path
) -> None:
    """Run the script."""
    open_checkpoint(compressed, compressed_manifest)
    made = read_json(statistics)
    check_folder(adapter, made["files"])
    filled = write_merged(compressed, adapter, made, checkpoint)
    files = hash_folder(checkpoint)
    total = measure(checkpoint)["total"]
    record = {"files": files, TRUST: code_is_trusted(), "zeros_filled": filled, "total": total}
    write_json(manifest, record)


if __name__ == "__main__":
    run(main)
