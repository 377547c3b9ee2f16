"""Make one patch of a compressed checkpoint by its method (aird/patching/methods/): its folder and its statistics."""

from pathlib import Path

from pydantic import Field

from aird.compression.patchable import check_patchable
from aird.models.loading import open_checkpoint
from aird.patching.method import ABSENT, PatchInputs
from aird.patching.methods import parse_patch
from aird.patching.patch_files import make_patch
from aird.settings.base import Settings
from aird.support.files import read_json, read_json_lines

from arguments import run


class Job(Settings):
    """What a patch depends on besides files: its own settings, and which prompts and attacks it sees."""

    patch: dict[str, object]
    sizes: dict[str, int] = Field({})
    seed: int = 0
    attacks: dict[str, dict[str, object]] = Field({})


def main(
    original: Path | None,
    original_manifest: Path | None,
    compressed: Path | None,
    compressed_manifest: Path | None,
    direction: Path | None,
    direction_record: Path | None,
    own: Path | None,
    own_record: Path | None,
    replies: Path | None,
    harmful: Path | None,
    harmless: Path | None,
    attacks: Path | None,
    settings: Job,
    base: str,
    adapter: Path,
    statistics: Path,
) -> None:
    """Run the script, with the files that the patch's method needs."""
    if original and original_manifest:
        open_checkpoint(original, original_manifest)
    if compressed and compressed_manifest:
        check_patchable(open_checkpoint(compressed, compressed_manifest))
    texts = read_json(attacks) if attacks else {}
    prompts = {kind: read_json_lines(path) for kind, path in (("harmful", harmful), ("harmless", harmless)) if path}
    inputs = PatchInputs(
        base=base,
        original=original or ABSENT,
        compressed=compressed or ABSENT,
        direction=(direction, direction_record) if direction and direction_record else ABSENT,
        own=(own, own_record) if own and own_record else ABSENT,
        prompts=prompts or ABSENT,
        sizes=settings.sizes,
        seed=settings.seed,
        replies=replies,
        attacks={name: (attack, texts[name]) for name, attack in settings.attacks.items()} or ABSENT,
    )
    manifest = read_json(original_manifest) if original_manifest else {}
    make_patch(parse_patch(settings.patch), inputs, adapter, statistics, manifest.get("licence"))


if __name__ == "__main__":
    run(main, model=True)
