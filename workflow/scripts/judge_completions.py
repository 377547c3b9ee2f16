"""Serve a judge and ask it about completions."""

from pathlib import Path
from typing import Annotated

from aird.evaluation.engine import open_engine
from aird.evaluation.judgements import judge_completions
from aird.models.loading import open_checkpoint
from aird.plugin import JUDGES, OneOf
from aird.settings.base import Settings
from aird.settings.judges import JudgeSettings
from aird.support.files import read_json_lines, write_json_lines

from arguments import run


class Asked(Settings):
    """How the judge is asked, and what its server is started with."""

    judge: Annotated[JudgeSettings, OneOf(JUDGES)]
    engine: dict[str, object]


def main(
    judge: Path,
    judge_manifest: Path,
    environment: Path | None,
    completions: Path,
    settings: Asked,
    engine: str,
    seed: int,
    server_log: Path,
    output: Path,
) -> None:
    """Run the script."""
    open_checkpoint(judge, judge_manifest)
    opened, asked = open_engine(engine, settings.engine, environment), read_json_lines(completions)
    judgement = judge_completions(judge, opened, asked, settings.judge, seed=seed, log=server_log)
    write_json_lines(output, judgement)


if __name__ == "__main__":
    run(main, model=True)
