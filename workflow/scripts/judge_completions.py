"""Serve a judge and ask it about every completion of a harmful instruction."""

from aird.evaluation.engines.registry import recorded_engine
from aird.evaluation.judges.served import judge_completions
from aird.models.loading import open_checkpoint
from aird.settings.suites import Classifier, Serving
from aird.support.files import read_json_lines, write_json_lines

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="arithmetic judge judge_manifest environment completions server_log output",
        texts="settings seed",
        gpu=True,
    )
    begin_job(arguments)
    open_checkpoint(arguments.judge, arguments.judge_manifest)
    judgement = judge_completions(
        arguments.judge,
        recorded_engine(arguments.environment),
        read_json_lines(arguments.completions),
        Classifier.model_validate(arguments.settings["judge"]),
        Serving.model_validate(arguments.settings["serving"]),
        seed=int(arguments.seed),
        log=arguments.server_log,
    )
    write_json_lines(arguments.output, judgement)


if __name__ == "__main__":
    main()
