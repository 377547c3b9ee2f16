"""Serve one checkpoint and ask it everything that a suite measures."""

from aird.evaluation.engines.address import Address
from aird.evaluation.engines.registry import recorded_engine
from aird.evaluation.questions import Asked
from aird.evaluation.suite_run import Deployment, Places, evaluate_suite
from aird.models.loading import open_checkpoint
from aird.prompts.sets import CLASSES, select
from aird.settings.suites import Serving, Suite
from aird.support.files import check_folder, read_json, read_json_lines, write_json, write_json_lines

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="arithmetic checkpoint manifest harmful harmless server_log completions utility",
        optional="environment adapter adapter_statistics reference task_folder",
        optional_texts="url key_value_cache_dtype",
        many="attacks",
        texts="settings serve seed",
        gpu=True,
    )
    begin_job(arguments)
    # Object storage brings the task's files elsewhere than the configuration says.
    folder = str(arguments.task_folder) if arguments.task_folder else None
    more = {"task_folder": folder, "serve": arguments.serve}
    suite = Suite.model_validate({**arguments.settings["suite"], **more})
    seed = int(arguments.seed)
    records = {kind: select(read_json_lines(getattr(arguments, kind)), getattr(suite, kind), seed) for kind in CLASSES}
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    if arguments.adapter is not None:
        check_folder(arguments.adapter, read_json(arguments.adapter_statistics)["files"])
    texts: dict[str, str] = {}
    for path in arguments.attacks:  # those of the suite, and those that are optimised against this checkpoint
        made = read_json(path)
        texts |= {name: text if isinstance(text, str) else text["text"] for name, text in made.items()}
    reference = None if arguments.reference is None else read_json_lines(arguments.reference)
    deployment = Deployment(
        arguments.checkpoint,
        arguments.adapter,
        Address(arguments.url) if arguments.url else recorded_engine(arguments.environment),
        Serving.model_validate(arguments.settings["serving"]),
        arguments.key_value_cache_dtype,
    )
    completions, utility = evaluate_suite(
        Asked(suite, records, seed, reference, texts),
        deployment,
        Places(arguments.completions.with_suffix(".served"), arguments.server_log),
    )
    write_json(arguments.utility, utility)
    write_json_lines(arguments.completions, completions)


if __name__ == "__main__":
    main()
