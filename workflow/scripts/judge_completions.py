"""Serve a judge and ask it about completions."""

from pathlib import Path
from typing import Annotated

from aird.evaluation.engines.registry import recorded_engine
from aird.evaluation.judgements import judge_completions
from aird.models.loading import open_checkpoint
from aird.plugin import JUDGES, OneOf
from aird.settings.base import Settings
from aird.settings.judges import JudgeSettings
from aird.settings.suites import Serving
from aird.support.files import read_json_lines, write_json_lines

from arguments import run


class Asked(Settings):
    """How the judge is asked, and what its server is started with."""

    judge: Annotated[JudgeSettings, OneOf(JUDGES)]
    serving: Serving


def main(
    judge: Path,
    judge_manifest: Path,
    environment: Path,
    completions: Path,
    settings: Asked,
    seed: int,
    server_log: Path,
    output: Path,
) -> None:
    """Run the script."""
    open_checkpoint(judge, judge_manifest)
    engine, asked = recorded_engine(environment), read_json_lines(completions)
    judgement = judge_completions(judge, engine, asked, settings.judge, settings.serving, seed=seed, log=server_log)
    write_json_lines(output, judgement)


if __name__ == "__main__":
    run(main, model=True)
