"""Build the environment of an engine's server from its lock, or record the one that the user has."""

from pathlib import Path

from aird.support.environments import build_environment, describe_environment
from aird.support.files import write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="environment output", optional="lock", texts="settings")
    begin_job(arguments)
    settings = arguments.settings
    executable = settings["executable"]
    # Records of vLLM name no engine: they were there first.
    engine = {"engine": settings["engine"]} if "engine" in settings else {}
    if settings.get("url") or settings.get("urls"):
        write_json(arguments.output, {"python": None, "url": settings["url"] or settings["urls"], "versions": {}})
        return
    if executable is not None:
        python = Path(executable).absolute()
        recorded = str(python)
    else:
        python = build_environment(arguments.lock, arguments.environment)
        # Relative, so that a results folder can be moved.
        recorded = str(python.relative_to(arguments.output.absolute().parent))
    versions = describe_environment(python, **engine)
    write_json(arguments.output, {**engine, "python": recorded, "url": None, "versions": versions})


if __name__ == "__main__":
    main()
