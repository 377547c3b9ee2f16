"""Build the environment of a recipe's tool from its lock; the recipe's module describes what is in it."""

from importlib import import_module

from aird.support.environments import build_environment
from aird.support.files import write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="lock environment output", texts="module")
    begin_job(arguments)
    python = build_environment(arguments.lock, arguments.environment)
    # Relative, so that a results folder can be moved.
    recorded = str(python.relative_to(arguments.output.absolute().parent))
    described = import_module(arguments.module).describe_environment(python)
    write_json(arguments.output, {"python": recorded, "versions": described["versions"]})


if __name__ == "__main__":
    main()
