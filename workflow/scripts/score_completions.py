"""Label every completion with every judge, and count."""

from aird.evaluation.scores import score
from aird.support.files import read_json, read_json_lines, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="completions utility output", optional="judgement", texts="seed")
    begin_job(arguments)
    completions = read_json_lines(arguments.completions)
    judgement = None if arguments.judgement is None else read_json_lines(arguments.judgement)
    write_json(arguments.output, score(completions, read_json(arguments.utility), int(arguments.seed), judgement))


if __name__ == "__main__":
    main()
