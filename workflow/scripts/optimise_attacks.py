"""Make the texts of attacks that are optimised against one checkpoint and its patch."""

from pathlib import Path
from typing import Annotated

from aird.models.dense import model_with_gradients
from aird.models.loading import load_tokenizer, open_checkpoint
from aird.patching.system_prompt import read_patch
from aird.plugin import ATTACKS, OneOf
from aird.prompts.sets import select
from aird.settings.attacks import OptimisedSettings
from aird.support.files import check_folder, read_json, read_json_lines, scratch_folder, write_json

from arguments import run


def main(
    checkpoint: Path,
    manifest: Path,
    adapter: Path | None,
    adapter_statistics: Path | None,
    prompts: list[Path],
    settings: dict[str, Annotated[OptimisedSettings, OneOf(ATTACKS)]],
    seed: int,
    output: Path,
) -> None:
    """Run the script."""
    sets = {path.stem: read_json_lines(path) for path in prompts}
    open_checkpoint(checkpoint, manifest)
    if adapter is not None and adapter_statistics is not None:
        check_folder(adapter, read_json(adapter_statistics)["files"])
    weights, system_prompt = read_patch(adapter)
    tokenizer = load_tokenizer(checkpoint)
    with scratch_folder(output) as scratch, model_with_gradients(checkpoint, scratch, weights) as model:
        made = {
            name: ATTACKS.of(attack).optimise(
                model, tokenizer, attack, select(sets[attack.prompts.set], attack.prompts, seed), system_prompt
            )
            for name, attack in settings.items()
        }
    write_json(output, made)


if __name__ == "__main__":
    run(main, model=True)
