"""Build one prompt set: read or combine, drop duplicates and overlaps, draw splits."""

from aird.prompts.building import build_prompt_set
from aird.settings.prompts import PromptSet
from aird.support.files import read_json_lines, write_json_lines

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="output", texts="name settings seed", many="combine disjoint_from")
    begin_job(arguments)
    settings = PromptSet.model_validate(arguments.settings)
    combined, apart_from = (
        [record for path in paths for record in read_json_lines(path)]
        for paths in (arguments.combine, arguments.disjoint_from)
    )
    records, dropped = build_prompt_set(arguments.name, settings, combined, apart_from, int(arguments.seed))
    print(f"{arguments.name}: {len(records)} instructions kept, dropped {dropped}")
    write_json_lines(arguments.output, records)


if __name__ == "__main__":
    main()
