"""Build vLLM's environment from its lock, or record the one that the user has."""

from pathlib import Path

from aird.support.environments import build_environment, describe_environment
from aird.support.files import write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="environment output", optional="lock", texts="settings")
    begin_job(arguments)
    url, executable = arguments.settings["url"], arguments.settings["executable"]
    if url is not None:
        write_json(arguments.output, {"python": None, "url": url, "versions": {}})
        return
    if executable is not None:
        python = Path(executable).absolute()
        recorded = str(python)
    else:
        python = build_environment(arguments.lock, arguments.environment)
        # Relative, so that a results folder can be moved.
        recorded = str(python.relative_to(arguments.output.absolute().parent))
    write_json(arguments.output, {"python": recorded, "url": None, "versions": describe_environment(python)})


if __name__ == "__main__":
    main()
