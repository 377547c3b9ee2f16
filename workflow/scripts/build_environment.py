"""Build the environment of an engine's server from its lock, or record the one that the user has."""

from pathlib import Path

from aird.settings.base import Settings
from aird.support.environments import build_environment, describe_environment
from aird.support.files import write_json

from arguments import run


class Place(Settings):
    """Which engine it is, None of vLLM, and where the user has it, if so."""

    executable: str | None
    engine: str | None = None
    url: str | None = None
    urls: dict[str, dict[str, str]] | None = None
    lock: str | None = None


def main(lock: Path | None, environment: Path, settings: Place, output: Path) -> None:
    """Run the script."""
    # Records of vLLM name no engine.
    engine = {} if settings.engine is None else {"engine": settings.engine}
    if settings.url or settings.urls:
        write_json(output, {"python": None, "url": settings.url or settings.urls, "versions": {}})
        return
    if settings.executable is not None:
        python = Path(settings.executable).absolute()
        recorded = str(python)
    elif lock is not None:
        python = build_environment(lock, environment)
        # Relative, so that a results folder can be moved.
        recorded = str(python.relative_to(output.absolute().parent))
    else:
        raise ValueError("neither a lock nor an environment of the user's")
    versions = describe_environment(python, **engine)
    write_json(output, {**engine, "python": recorded, "url": None, "versions": versions})


if __name__ == "__main__":
    run(main)
