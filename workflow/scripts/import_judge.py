"""Fetch a judge's model from its pinned source and write it as a checkpoint folder with a manifest."""

from aird.evaluation.classifier_judge import import_judge
from aird.prompts.sources import open_model
from aird.settings.suites import Judge
from aird.support.files import atomic_folder, hash_folder, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="checkpoint manifest", texts="settings")
    begin_job(arguments)
    # The source alone decides what is fetched, so only it is given.
    judge = Judge.model_validate({"source": arguments.settings})
    with open_model(judge.source) as source, atomic_folder(arguments.checkpoint) as folder:
        import_judge(source, folder)
    write_json(arguments.manifest, {"source": arguments.settings, "files": hash_folder(arguments.checkpoint)})


if __name__ == "__main__":
    main()
