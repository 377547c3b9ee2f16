"""Make one patch of a compressed checkpoint by its method (aird/patching/methods/): its folder and its statistics."""

from aird.compression.patchable import check_patchable
from aird.models.loading import open_checkpoint
from aird.patching.method import PatchInputs
from aird.patching.methods import needs_of, parse_patch
from aird.patching.patch_files import make_patch
from aird.support.files import read_json, read_json_lines

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="adapter statistics",
        # What its method needs: the rule gives no more.
        optional="arithmetic original original_manifest compressed compressed_manifest direction direction_record "
        "own own_record replies harmful harmless attacks",
        texts="settings base",
    )
    settings = parse_patch(arguments.settings.pop("patch"))
    attacks = arguments.settings.pop("attacks", {})
    texts = read_json(arguments.attacks) if arguments.attacks else {}
    arguments.gpu = "prompts" in needs_of(settings)
    begin_job(arguments)
    if arguments.original:
        open_checkpoint(arguments.original, arguments.original_manifest)
    if arguments.compressed:
        check_patchable(open_checkpoint(arguments.compressed, arguments.compressed_manifest))
    inputs = PatchInputs(
        base=arguments.base,
        original=arguments.original,
        compressed=arguments.compressed,
        direction=arguments.direction and (arguments.direction, arguments.direction_record),
        own=arguments.own and (arguments.own, arguments.own_record),
        prompts=arguments.harmful
        and {kind: read_json_lines(getattr(arguments, kind)) for kind in ("harmful", "harmless")},
        replies=arguments.replies,
        attacks=arguments.attacks and {name: (attack, texts[name]) for name, attack in attacks.items()},
        **arguments.settings,
    )
    manifest = read_json(arguments.original_manifest) if arguments.original_manifest else {}
    make_patch(settings, inputs, arguments.adapter, arguments.statistics, manifest.get("licence"))


if __name__ == "__main__":
    main()
