"""Ablate and add the chosen direction on held-out prompts (claim C1)."""

from aird.directions.direction import load_direction
from aird.directions.verification import verify_direction
from aird.models.loading import load_model, load_tokenizer, open_checkpoint
from aird.prompts.chat import chat_tokens
from aird.prompts.sets import select
from aird.settings.base import PromptSelection
from aird.support.files import read_json_lines, write_json
from aird.support.statistics import mcnemar, wilson_interval

from arguments import begin_job, parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="arithmetic checkpoint manifest direction record harmful harmless output",
        texts="settings seed",
        gpu=True,
    )
    begin_job(arguments)
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    tokenizer, model = load_tokenizer(arguments.checkpoint), load_model(arguments.checkpoint)
    selection = PromptSelection(set="held-out", split="test", count=arguments.settings["test"])
    prompts, ids = {}, {}
    for kind in ("harmful", "harmless"):
        records = select(read_json_lines(getattr(arguments, kind)), selection, int(arguments.seed))
        ids[kind] = [record["id"] for record in records]
        prompts[kind] = [chat_tokens(tokenizer, record["instruction"]) for record in records]
    direction = load_direction(arguments.direction, arguments.record)
    labels = verify_direction(
        model,
        tokenizer,
        (direction.unit, direction.norm, direction.layer),
        prompts["harmful"],
        prompts["harmless"],
        arguments.settings["test_new_tokens"],
    )
    rates = {}
    for name, found in labels.items():
        n, refused = len(found["refused"]), sum(found["refused"])
        low, high = wilson_interval(refused, n)
        rates[name] = {
            "n": n,
            "refusal": refused / n,
            "refusal_low": low,
            "refusal_high": high,
            "degenerate": sum(found["degenerate"]) / n,
        }
    tests = {
        "ablation_p_value": mcnemar(labels["harmful"]["refused"], labels["harmful_ablated"]["refused"])[2],
        "addition_p_value": mcnemar(labels["harmless"]["refused"], labels["harmless_added"]["refused"])[2],
    }
    write_json(arguments.output, {"rates": rates, **tests, "ids": ids, "labels": labels})


if __name__ == "__main__":
    main()
