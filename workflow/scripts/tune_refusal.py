"""Give a model a small refusal tuning, merged into its checkpoint."""

from pathlib import Path

from aird.models.loading import TRUST, code_is_trusted, open_checkpoint
from aird.models.tuning import tune_to_refuse
from aird.prompts.sets import select_instructions
from aird.settings.models import RefusalTuning
from aird.support.files import atomic_folder, hash_folder, read_json_lines, write_json

from arguments import run

# What the manifest says of the model that it is still true of.
INHERITED = ("source", "licence", "generation_settings", "chat", "wrapper")


def main(
    source: Path,
    source_manifest: Path,
    harmful: Path,
    harmless: Path,
    settings: RefusalTuning,
    seed: int,
    checkpoint: Path,
    manifest: Path,
) -> None:
    """Run the script."""
    untuned = open_checkpoint(source, source_manifest)
    refused = select_instructions(read_json_lines(harmful), settings.harmful, seed)
    answered = select_instructions(read_json_lines(harmless), settings.harmless, seed)
    with atomic_folder(checkpoint) as folder:
        statistics = tune_to_refuse(source, folder, refused, answered, settings)
    files = hash_folder(checkpoint)
    inherited: dict[str, object] = {name: untuned[name] for name in INHERITED if name in untuned}
    record = {**inherited, TRUST: code_is_trusted(), "refusal_tuning": statistics, "files": files}
    write_json(manifest, record)


if __name__ == "__main__":
    run(main, model=True)
