"""Label every completion with every judge, and count."""

from aird.files import read_json, read_json_lines, write_json
from aird.scores import score

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="completions utility output", texts="seed")
    completions = read_json_lines(arguments.completions)
    write_json(arguments.output, score(completions, read_json(arguments.utility), int(arguments.seed)))


if __name__ == "__main__":
    main()
