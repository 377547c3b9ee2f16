"""Write the report: one HTML file, from tables, figures and records."""

from aird.reporting.report.page import Sources, write_report

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    files = "tables figures captions manifests records locks"
    arguments = parse(__doc__, paths="timings arithmetic output", texts="settings command", many=files)
    begin_job(arguments)
    sources = Sources(
        **{name: getattr(arguments, name) for name in files.split()},
        timings=arguments.timings,
        arithmetic=arguments.arithmetic,
        configuration=arguments.settings,
        command=arguments.command,
    )
    write_report(arguments.output, sources)


if __name__ == "__main__":
    main()
