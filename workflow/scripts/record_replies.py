"""Record the original's replies to the direction prompts: what calibrated patches learn from."""

from pathlib import Path

from aird.models.loading import open_checkpoint
from aird.patching.replies import original_replies, save_replies
from aird.settings.patches import Replies
from aird.support.files import read_json_lines

from arguments import run


def main(
    checkpoint: Path, manifest: Path, harmful: Path, harmless: Path, settings: Replies, seed: int, output: Path
) -> None:
    """Run the script."""
    open_checkpoint(checkpoint, manifest)
    records = {"harmful": read_json_lines(harmful), "harmless": read_json_lines(harmless)}
    save_replies(output, original_replies(checkpoint, records, settings, seed))


if __name__ == "__main__":
    run(main, model=True)
