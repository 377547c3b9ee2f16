"""Read the texts of a suite's attacks from their pinned sources."""

from aird.prompts.attack_texts import read_attack_texts
from aird.settings.attacks import parse_attack
from aird.support.files import write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="output", texts="settings")
    begin_job(arguments)
    attacks = {name: parse_attack(settings) for name, settings in arguments.settings.items()}
    write_json(arguments.output, read_attack_texts(attacks))


if __name__ == "__main__":
    main()
