"""Read the texts of a suite's attacks from their pinned sources."""

from pathlib import Path
from typing import Annotated

from aird.plugin import ATTACKS, OneOf
from aird.prompts.attack import read_attack_texts
from aird.settings.attacks import AttackSettings
from aird.support.files import write_json

from arguments import run


def main(settings: dict[str, Annotated[AttackSettings, OneOf(ATTACKS)]], output: Path) -> None:
    """Run the script."""
    write_json(output, read_attack_texts(settings))


if __name__ == "__main__":
    run(main)
