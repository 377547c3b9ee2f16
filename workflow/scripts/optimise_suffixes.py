"""Optimise suffixes against one checkpoint and its patch, by GCG."""

from pathlib import Path

from aird.evaluation.suffixes import optimise_suffixes
from aird.models.dense import model_with_gradients
from aird.models.loading import load_tokenizer, open_checkpoint
from aird.patching.system_prompt import read_patch
from aird.settings.attacks import OptimisedSuffix
from aird.support.files import check_folder, read_json, read_json_lines, scratch_folder, write_json

from arguments import run


def main(
    checkpoint: Path,
    manifest: Path,
    adapter: Path | None,
    adapter_statistics: Path | None,
    prompts: list[Path],
    settings: dict[str, OptimisedSuffix],
    seed: int,
    output: Path,
) -> None:
    """Run the script."""
    sets = {path.stem: read_json_lines(path) for path in prompts}
    open_checkpoint(checkpoint, manifest)
    if adapter is not None and adapter_statistics is not None:
        check_folder(adapter, read_json(adapter_statistics)["files"])
    weights, system_prompt = read_patch(adapter)
    with scratch_folder(output) as scratch, model_with_gradients(checkpoint, scratch, weights) as model:
        made = optimise_suffixes(
            model,
            load_tokenizer(checkpoint),
            settings,
            {name: sets[attack.prompts.set] for name, attack in settings.items()},
            seed,
            system_prompt,
        )
    write_json(output, made)


if __name__ == "__main__":
    run(main, model=True)
