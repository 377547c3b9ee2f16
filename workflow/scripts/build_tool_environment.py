"""Build the environment of a recipe's tool from its lock; the recipe's module describes what is in it."""

from importlib import import_module
from pathlib import Path

from aird.support.environments import build_environment
from aird.support.files import write_json

from arguments import run


def main(lock: Path, environment: Path, module: str, output: Path) -> None:
    """Run the script."""
    python = build_environment(lock, environment)
    # Relative, so that a results folder can be moved.
    recorded = str(python.relative_to(output.absolute().parent))
    described = import_module(module).describe_environment(python)
    write_json(output, {"python": recorded, "versions": described["versions"]})


if __name__ == "__main__":
    run(main)
