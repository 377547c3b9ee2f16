"""Import a compressed checkpoint that somebody else made, check that it fits its original, and measure it."""

from pathlib import Path

from aird.compression.ready_made import check_config, import_given
from aird.models.card_metadata import read_licence
from aird.models.generation_settings import own_generation_settings
from aird.models.loading import TRUST, code_is_trusted, open_checkpoint
from aird.prompts.sources import model_config, open_model
from aird.settings.sources import ModelSource
from aird.support.files import hash_folder, write_json

from arguments import run


def main(
    original: Path, original_manifest: Path, recipe: str, settings: ModelSource, checkpoint: Path, manifest: Path
) -> None:
    """Run the script."""
    open_checkpoint(original, original_manifest)
    config = model_config(settings)
    if config is not None:  # before gigabytes are fetched
        check_config(config, original, str(settings.hub))
    with open_model(settings, code_is_trusted()) as source:
        imported = import_given(source, original, checkpoint)
        licence = read_licence(source)
        own = own_generation_settings(checkpoint, source if source.is_file() else None)
    source_record = settings.model_dump(exclude_none=True)
    record = {
        "settings": {"recipe": recipe, "source": source_record},
        "source": source_record,
        "licence": licence,
        TRUST: code_is_trusted(),
        "generation_settings": own,
        **imported,
        "files": hash_folder(checkpoint),
    }
    write_json(manifest, record)


if __name__ == "__main__":
    run(main)
