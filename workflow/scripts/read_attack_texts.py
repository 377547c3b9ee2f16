"""Read the texts of a suite's attacks from their pinned sources."""

from pathlib import Path

from aird.prompts.attack_texts import read_attack_texts
from aird.settings.attacks import parse_attack
from aird.support.files import write_json

from arguments import run


def main(settings: dict[str, dict[str, object]], output: Path) -> None:
    """Run the script."""
    attacks = {name: parse_attack(values) for name, values in settings.items()}
    write_json(output, read_attack_texts(attacks))


if __name__ == "__main__":
    run(main)
