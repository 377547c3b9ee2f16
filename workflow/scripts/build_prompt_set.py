"""Build one prompt set: read or combine, drop duplicates and overlaps, draw splits."""

from pathlib import Path

from aird.prompts.building import build_prompt_set
from aird.settings.prompts import PromptSet
from aird.support.files import read_json_lines, write_json_lines

from arguments import run


def main(
    name: str, combine: list[Path], disjoint_from: list[Path], settings: PromptSet, seed: int, output: Path
) -> None:
    """Run the script."""
    combined, apart_from = (
        [record for path in paths for record in read_json_lines(path)] for paths in (combine, disjoint_from)
    )
    records, dropped = build_prompt_set(name, settings, combined, apart_from, seed)
    print(f"{name}: {len(records)} instructions kept, dropped {dropped}")
    write_json_lines(output, records)


if __name__ == "__main__":
    run(main)
