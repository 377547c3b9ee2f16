"""Build the environment of an engine or a recipe from its lock, or record the one that the user has."""

from pathlib import Path

from aird.settings.base import Settings
from aird.support.environments import build_environment, describe_environment
from aird.support.files import write_json

from arguments import run


class Place(Settings):
    """Where the user has the environment, if so, what is imported there, and the packages that are recorded."""

    executable: str | None
    modules: list[str]
    packages: list[str]


def main(lock: Path | None, environment: Path, settings: Place, output: Path) -> None:
    """Run the script."""
    if settings.executable is not None:
        python = Path(settings.executable).absolute()
        recorded = str(python)
    elif lock is not None:
        python = build_environment(lock, environment)
        # Relative, so that a results folder can be moved.
        recorded = str(python.relative_to(output.absolute().parent))
    else:
        raise ValueError("neither a lock nor an environment of the user's")
    versions = describe_environment(python, settings.modules, settings.packages)
    write_json(output, {"python": recorded, "versions": versions})


if __name__ == "__main__":
    run(main)
