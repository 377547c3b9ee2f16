"""Serve a judge with vLLM and ask it about every completion of a harmful instruction."""

from transformers import AutoTokenizer

from aird.evaluation.classifier_judge import judge_completions
from aird.evaluation.serving import ServerSettings, serve
from aird.models.loading import open_checkpoint
from aird.settings.suites import Judge
from aird.support.files import read_json, read_json_lines, write_json_lines

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
    judge = Judge.model_validate(arguments.settings)
    environment = read_json(arguments.environment)
    open_checkpoint(arguments.judge, arguments.judge_manifest)
    settings = ServerSettings(maximum_model_length=judge.maximum_model_length, seed=int(arguments.seed))
    # A server at the user's address serves the judged model, not the judge: this one is always started.
    python = arguments.environment.parent / environment["python"] if environment["python"] else None
    with serve(arguments.judge, python, settings, arguments.server_log) as client:
        tokenizer = AutoTokenizer.from_pretrained(str(arguments.judge))
        found = judge_completions(client, tokenizer, read_json_lines(arguments.completions), judge)
    write_json_lines(arguments.output, found)


if __name__ == "__main__":
    main()
