"""Build one prompt set: read or combine, drop duplicates and overlaps, draw splits."""

from aird.prompts.sets import build_set
from aird.prompts.sources import open_file
from aird.settings.prompt_files import read_instructions
from aird.settings.prompts import PromptSet
from aird.support.files import read_json_lines, write_json_lines

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="output", texts="name settings seed", many="combine disjoint_from")
    begin_job(arguments)
    settings = PromptSet.model_validate(arguments.settings)
    if settings.source is not None:
        with open_file(settings.source) as path:
            read = read_instructions(path, settings)
        rows = [{"instruction": text, "origin": arguments.name, "split": split} for text, split in read]
    else:
        rows = [{**record, "split": None} for path in arguments.combine for record in read_json_lines(path)]
    apart_from = [record for path in arguments.disjoint_from for record in read_json_lines(path)]
    records, dropped = build_set(arguments.name, settings, rows, apart_from, int(arguments.seed))
    print(f"{arguments.name}: {len(records)} instructions kept, dropped {dropped}")
    write_json_lines(arguments.output, records)


if __name__ == "__main__":
    main()
