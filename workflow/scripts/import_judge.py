"""Fetch a judge's model from its pinned source and write it as a checkpoint folder with a manifest."""

from pathlib import Path

from aird.evaluation.judge_model import import_judge
from aird.prompts.sources import open_model
from aird.settings.base import Settings
from aird.settings.models import Chat
from aird.settings.sources import ModelSource
from aird.support.files import atomic_folder, hash_folder, write_json

from arguments import run


class Judge(Settings):
    """What the import of a judge depends on.

    Attributes:
        templated: the judge is asked by a text of the settings, not by its own chat template.
    """

    source: ModelSource
    chat: Chat | None
    templated: bool


def main(settings: Judge, checkpoint: Path, manifest: Path) -> None:
    """Run the script."""
    with open_model(settings.source) as source, atomic_folder(checkpoint) as folder:
        import_judge(source, folder, settings.chat, settings.templated)
    write_json(manifest, {**settings.model_dump(), "files": hash_folder(checkpoint)})


if __name__ == "__main__":
    run(main)
