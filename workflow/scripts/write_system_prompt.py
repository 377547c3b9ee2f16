"""Write the folder of a patch that is a system prompt."""

from aird.patching.patch_files import write_baseline
from aird.patching.system_prompt import save_system_prompt
from aird.settings.patches import SystemPrompt

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="adapter statistics", texts="settings base")
    begin_job(arguments)
    settings = SystemPrompt.model_validate(arguments.settings)
    write_baseline(
        settings,
        lambda folder: save_system_prompt(settings, folder),
        arguments.adapter,
        arguments.statistics,
        arguments.base,
    )


if __name__ == "__main__":
    main()
