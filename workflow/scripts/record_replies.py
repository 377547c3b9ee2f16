"""Record the original's replies to the direction prompts: what calibrated patches learn from."""

from aird.models.loading import open_checkpoint
from aird.patching.replies import original_replies, save_replies
from aird.settings.patches import Replies
from aird.support.files import read_json_lines

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__, paths="arithmetic checkpoint manifest harmful harmless output", texts="settings seed", gpu=True
    )
    begin_job(arguments)
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    records = {kind: read_json_lines(getattr(arguments, kind)) for kind in ("harmful", "harmless")}
    sizes = Replies.model_validate(arguments.settings)
    save_replies(arguments.output, original_replies(arguments.checkpoint, records, sizes, int(arguments.seed)))


if __name__ == "__main__":
    main()
