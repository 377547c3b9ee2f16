"""Fetch a judge's model from its pinned source and write it as a checkpoint folder with a manifest."""

from aird.evaluation.judge_model import import_judge
from aird.prompts.sources import open_model
from aird.settings.models import Chat
from aird.settings.sources import ModelSource
from aird.support.files import atomic_folder, hash_folder, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="checkpoint manifest", texts="settings")
    begin_job(arguments)
    settings = arguments.settings
    chat = None if settings["chat"] is None else Chat.model_validate(settings["chat"])
    with (
        open_model(ModelSource.model_validate(settings["source"])) as source,
        atomic_folder(arguments.checkpoint) as folder,
    ):
        import_judge(source, folder, chat, settings["templated"])
    write_json(arguments.manifest, {**settings, "files": hash_folder(arguments.checkpoint)})


if __name__ == "__main__":
    main()
