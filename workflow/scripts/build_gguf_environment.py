"""Build the environment of llama.cpp's quantiser and converter from its lock."""

from aird.compression.gguf_recipe import describe_gguf_environment
from aird.support.environments import build_environment
from aird.support.files import write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="lock environment output")
    begin_job(arguments)
    python = build_environment(arguments.lock, arguments.environment)
    # Relative, so that a results folder can be moved.
    recorded = str(python.relative_to(arguments.output.absolute().parent))
    write_json(arguments.output, {"python": recorded, "versions": describe_gguf_environment(python)["versions"]})


if __name__ == "__main__":
    main()
