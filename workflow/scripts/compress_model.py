"""Compress a model by one recipe, measure what came out, and refuse a recipe that did nothing."""

from pydantic import TypeAdapter

from aird.compression.registry import compress
from aird.models.loading import TRUST, code_is_trusted, load_tokenizer, open_checkpoint
from aird.prompts.chat import chat_tokens
from aird.prompts.sets import select
from aird.settings.base import PromptSelection
from aird.settings.compressions import CalibrationSettings, CompressionSettings
from aird.support.environments import recorded_python
from aird.support.files import hash_folder, read_json_lines, write_json

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="arithmetic original original_manifest checkpoint manifest",
        many="calibration environment",
        texts="settings",
        gpu=True,
    )
    begin_job(arguments)
    settings = TypeAdapter(CompressionSettings).validate_python(arguments.settings)
    open_checkpoint(arguments.original, arguments.original_manifest)
    calibration = None
    for path in arguments.calibration:  # one file, for a recipe that needs prompts
        chosen: CalibrationSettings = settings.calibration  # type: ignore[union-attr]  # only these get prompts
        selection = PromptSelection(set=chosen.prompt_set, split=chosen.split, count=chosen.count)
        tokenizer = load_tokenizer(arguments.original)
        records = select(read_json_lines(path), selection, chosen.seed)
        calibration = [chat_tokens(tokenizer, record["instruction"]) for record in records]
    python = None
    for record_path in arguments.environment:
        python = recorded_python(record_path)
    measurements = compress(arguments.original, arguments.checkpoint, settings, calibration, python)
    files = hash_folder(arguments.checkpoint)
    record = {"settings": arguments.settings, TRUST: code_is_trusted(), **measurements, "files": files}
    write_json(arguments.manifest, record)


if __name__ == "__main__":
    main()
