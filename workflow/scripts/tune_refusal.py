"""Give a model a small refusal tuning, merged into its checkpoint."""

from typing import Any

from aird.models.loading import TRUST, code_is_trusted, open_checkpoint
from aird.models.tuning import tune_to_refuse
from aird.prompts.sets import select_instructions
from aird.settings.models import RefusalTuning
from aird.support.files import atomic_folder, hash_folder, read_json_lines, write_json

from arguments import begin_job, parse

# What the manifest says of the model that it is still true of.
INHERITED = ("source", "licence", "generation_settings", "chat", "wrapper")


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__, paths="source source_manifest harmful harmless checkpoint manifest", texts="settings seed", gpu=True
    )
    begin_job(arguments)
    settings = RefusalTuning.model_validate(arguments.settings)
    manifest = open_checkpoint(arguments.source, arguments.source_manifest)
    seed = int(arguments.seed)
    harmful = select_instructions(read_json_lines(arguments.harmful), settings.harmful, seed)
    harmless = select_instructions(read_json_lines(arguments.harmless), settings.harmless, seed)
    with atomic_folder(arguments.checkpoint) as folder:
        statistics = tune_to_refuse(arguments.source, folder, harmful, harmless, settings)
    files = hash_folder(arguments.checkpoint)
    inherited: dict[str, Any] = {name: manifest[name] for name in INHERITED if name in manifest}
    record = {**inherited, TRUST: code_is_trusted(), "refusal_tuning": statistics, "files": files}
    write_json(arguments.manifest, record)


if __name__ == "__main__":
    main()
