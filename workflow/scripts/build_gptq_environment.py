"""Build the environment of optimum and GPTQModel from its lock."""

from aird.compression.optimum_gptq import describe_gptq_environment
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
    write_json(arguments.output, {"python": recorded, "versions": describe_gptq_environment(python)})


if __name__ == "__main__":
    main()
