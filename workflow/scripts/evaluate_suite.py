"""Serve one checkpoint and ask it everything that a suite measures."""

import os
from pathlib import Path

from pydantic import Json

from aird.evaluation.engine import open_engine
from aird.evaluation.questions import Asked
from aird.evaluation.suite_run import Deployment, Places, evaluate_suite
from aird.models.loading import open_checkpoint
from aird.prompts.sets import select
from aird.settings.base import Settings
from aird.settings.suites import Serving, Suite
from aird.support.files import check_folder, read_json, read_json_lines, write_json, write_json_lines

from arguments import run


class Job(Settings):
    """What is asked, and what is asked of every engine."""

    suite: dict[str, object]
    serving: Serving


def main(
    environment: Path | None,
    checkpoint: Path,
    manifest: Path,
    adapter: Path | None,
    adapter_statistics: Path | None,
    reference: Path | None,
    harmful: Path,
    harmless: Path,
    tasks: list[Path],
    attacks: list[Path],
    settings: Job,
    serve: str,
    engine: str,
    engine_settings: Json[dict[str, object]],
    key_value_cache_dtype: str | None,
    seed: int,
    server_log: Path,
    completions: Path,
    utility: Path,
) -> None:
    """Run the script."""
    # Object storage brings the task's files elsewhere than the configuration says.
    folder = os.path.commonpath([path.parent for path in tasks]) if tasks else None
    suite = Suite.model_validate({**settings.suite, "task_folder": folder, "serve": serve})
    records = {
        "harmful": select(read_json_lines(harmful), suite.harmful, seed),
        "harmless": select(read_json_lines(harmless), suite.harmless, seed),
    }
    open_checkpoint(checkpoint, manifest)
    if adapter is not None and adapter_statistics is not None:
        check_folder(adapter, read_json(adapter_statistics)["files"])
    texts: dict[str, str] = {}
    for path in attacks:  # those of the suite, and those that are optimised against this checkpoint
        made = read_json(path)
        texts |= {name: text if isinstance(text, str) else text["text"] for name, text in made.items()}
    opened = open_engine(engine, engine_settings, environment)
    answered = None if reference is None else read_json_lines(reference)
    answers, measured = evaluate_suite(
        Asked(suite, records, seed, answered, texts, original=answered),
        Deployment(checkpoint, adapter, opened, settings.serving, key_value_cache_dtype),
        Places(completions.with_suffix(".served"), server_log),
    )
    write_json(utility, measured)
    write_json_lines(completions, answers)


if __name__ == "__main__":
    run(main, model=True)
