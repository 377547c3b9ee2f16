"""Fetch a judge's model from its pinned source and write it as a checkpoint folder with a manifest."""

from aird.evaluation.judge_model import import_judge
from aird.prompts.sources import open_model
from aird.settings.sources import ModelSource
from aird.support.files import atomic_folder, hash_folder, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="checkpoint manifest", texts="settings")
    begin_job(arguments)
    with (
        open_model(ModelSource.model_validate(arguments.settings)) as source,
        atomic_folder(arguments.checkpoint) as folder,
    ):
        import_judge(source, folder)
    write_json(arguments.manifest, {"source": arguments.settings, "files": hash_folder(arguments.checkpoint)})


if __name__ == "__main__":
    main()
