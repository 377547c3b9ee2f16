"""Read the texts of a suite's attacks from their pinned sources."""

from typing import Any

from pydantic import TypeAdapter

from aird.prompts.attack_texts import read_attack_texts
from aird.settings.attacks import Attack
from aird.support.files import write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="output", texts="settings")
    begin_job(arguments)
    one: TypeAdapter[Any] = TypeAdapter(Attack)
    attacks = {name: one.validate_python(settings) for name, settings in arguments.settings.items()}
    write_json(arguments.output, read_attack_texts(attacks))


if __name__ == "__main__":
    main()
