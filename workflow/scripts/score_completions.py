"""Label every completion with every judge, and count."""

from aird.evaluation.hand_labels import read_labels
from aird.evaluation.scores import score
from aird.support.files import read_json, read_json_lines, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="completions utility output", optional="judgement hand_labels", texts="seed")
    begin_job(arguments)
    completions = read_json_lines(arguments.completions)
    judgement = None if arguments.judgement is None else read_json_lines(arguments.judgement)
    hand_labels = None if arguments.hand_labels is None else read_labels(arguments.hand_labels)
    utility = read_json(arguments.utility)
    write_json(arguments.output, score(completions, utility, int(arguments.seed), judgement, hand_labels))


if __name__ == "__main__":
    main()
