"""Optimise suffixes against one checkpoint and its patch, by GCG."""

from aird.evaluation.suffixes import optimise_suffixes
from aird.models.dense import model_with_gradients
from aird.models.loading import load_tokenizer, open_checkpoint
from aird.patching.system_prompt import read_patch
from aird.settings.attacks import OptimisedSuffix
from aird.support.files import check_folder, read_json, read_json_lines, scratch_folder, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="arithmetic checkpoint manifest output",
        many="adapter adapter_statistics prompts",
        texts="settings seed",
        gpu=True,
    )
    begin_job(arguments)
    attacks = {name: OptimisedSuffix.model_validate(values) for name, values in arguments.settings.items()}
    sets = {path.stem: read_json_lines(path) for path in arguments.prompts}
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    patch = None
    for patch, statistics in zip(arguments.adapter, arguments.adapter_statistics, strict=True):
        check_folder(patch, read_json(statistics)["files"])
    adapter, system_prompt = read_patch(patch)
    with (
        scratch_folder(arguments.output) as scratch,
        model_with_gradients(arguments.checkpoint, scratch, adapter) as model,
    ):
        made = optimise_suffixes(
            model,
            load_tokenizer(arguments.checkpoint),
            attacks,
            {name: sets[attack.prompts.set] for name, attack in attacks.items()},
            int(arguments.seed),
            system_prompt,
        )
    write_json(arguments.output, made)


if __name__ == "__main__":
    main()
