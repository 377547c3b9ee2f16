"""Fetch a model from its pinned source and write it as a checkpoint folder with a manifest."""

from pathlib import Path

from aird.models.card_metadata import read_licence
from aird.models.generation_settings import own_generation_settings
from aird.models.importing import import_model
from aird.models.loading import TRUST, load_tokenizer
from aird.models.refusals import original_refusal
from aird.prompts.chat import chat_record
from aird.prompts.sources import model_config, open_model
from aird.settings.models import Model
from aird.support.files import atomic_folder, hash_folder, write_json

from arguments import run


def main(settings: Model, checkpoint: Path, manifest: Path) -> None:
    """Run the script."""
    trust = settings.trust_remote_code
    config = model_config(settings.source)
    if config is not None and (reason := original_refusal(config)):  # before gigabytes are fetched
        raise ValueError(f"{settings.source.hub}: {reason}")
    with open_model(settings.source, trust) as source, atomic_folder(checkpoint) as folder:
        wrapper = import_model(source, folder, settings.dtype, trust, settings.chat)
        licence = read_licence(source)
        own = own_generation_settings(folder, source if source.is_file() else None)
        chat = chat_record(load_tokenizer(folder))
    source_record = settings.source.model_dump(exclude_none=True)
    files = hash_folder(checkpoint)
    record = {"source": source_record, "licence": licence, TRUST: trust, "generation_settings": own, "files": files}
    # A model that is addressed plainly has no such entry, nor has one that is no wrapper.
    more = {"chat": chat, "wrapper": wrapper}
    write_json(manifest, record | {name: value for name, value in more.items() if value})


if __name__ == "__main__":
    run(main)
