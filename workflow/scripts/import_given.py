"""Import a compressed checkpoint that somebody else made, check that it fits its original, and measure it."""

from aird.compression.given import check_config, import_given
from aird.models.card_metadata import read_licence
from aird.models.generation_settings import own_generation_settings
from aird.models.gguf_file import served_gguf
from aird.models.loading import TRUST, code_is_trusted, open_checkpoint
from aird.prompts.sources import model_config, open_model
from aird.settings.sources import ModelSource
from aird.support.files import hash_folder, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="original original_manifest checkpoint manifest", texts="settings")
    begin_job(arguments)
    settings = ModelSource.model_validate(arguments.settings)
    open_checkpoint(arguments.original, arguments.original_manifest)
    config = model_config(settings)
    if config is not None:  # before gigabytes are fetched
        check_config(config, arguments.original, str(settings.hub))
    with open_model(settings, code_is_trusted()) as source:
        imported = import_given(source, arguments.original, arguments.checkpoint)
        licence = read_licence(source)
    source_record = settings.model_dump(exclude_none=True)
    record = {
        "settings": {"recipe": "given", "source": source_record},
        "source": source_record,
        "licence": licence,
        TRUST: code_is_trusted(),
        "generation_settings": own_generation_settings(arguments.checkpoint, served_gguf(arguments.checkpoint)),
        **imported,
        "files": hash_folder(arguments.checkpoint),
    }
    write_json(arguments.manifest, record)


if __name__ == "__main__":
    main()
