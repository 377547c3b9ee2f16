"""Serve one checkpoint with vLLM and ask it everything that a suite measures."""

from importlib.metadata import version

from aird.chat import chat_tokens
from aird.evaluation import (
    answer_likelihoods,
    check_parity,
    complete_records,
    first_token_logprobs,
    prepare_checkpoint,
    reference_answers,
    run_tasks,
)
from aird.files import check_folder, read_json, read_json_lines, scratch_folder, write_json, write_json_lines
from aird.models import code_is_trusted, load_model, load_tokenizer, open_checkpoint
from aird.prompts import select
from aird.serving import ServerSettings, detect_accelerator, serve
from aird.settings.suites import Serving, Suite

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(
        __doc__,
        paths="checkpoint manifest environment harmful harmless server_log completions utility",
        optional="adapter adapter_statistics reference task_folder",
        texts="settings seed",
        gpu=True,
    )
    suite = Suite.model_validate(arguments.settings["suite"])
    serving = Serving.model_validate(arguments.settings["serving"])
    seed = int(arguments.seed)
    records = {
        kind: select(read_json_lines(getattr(arguments, kind)), getattr(suite, kind), seed)
        for kind in ("harmful", "harmless")
    }
    open_checkpoint(arguments.checkpoint, arguments.manifest)
    tokenizer = load_tokenizer(arguments.checkpoint)

    # Half harmful, half harmless: a broken checkpoint may look right on one kind.
    half = -(-serving.parity_prompts // 2)
    chosen = [*records["harmful"][:half], *records["harmless"][:half]][: serving.parity_prompts]
    probes = [chat_tokens(tokenizer, record["instruction"]) for record in chosen]
    # Transformers runs base + adapter, the server the merged checkpoint: agreement checks the merge as well.
    expected = first_token_logprobs(load_model(arguments.checkpoint, arguments.adapter), probes)

    environment = read_json(arguments.environment)
    with scratch_folder(arguments.completions.with_suffix(".served")) as folder:
        if arguments.adapter is not None:
            check_folder(arguments.adapter, read_json(arguments.adapter_statistics)["files"])
        on_cpu = environment["url"] is None and detect_accelerator() == "cpu"
        checkpoint = prepare_checkpoint(arguments.checkpoint, arguments.adapter, on_cpu, folder)
        settings = ServerSettings(
            maximum_model_length=serving.maximum_model_length,
            key_value_cache_gib=serving.key_value_cache_gib,
            seed=seed,
            trust_remote_code=code_is_trusted(),
        )
        python = arguments.environment.parent / environment["python"] if environment["python"] else None
        with serve(checkpoint, python, settings, arguments.server_log, environment["url"]) as client:
            parity = check_parity(client, probes, expected, serving.parity_tolerance)
            completions = [
                completion
                for kind in ("harmful", "harmless")
                for completion in complete_records(client, tokenizer, records[kind], kind, suite.maximum_new_tokens)
            ]
            originals = completions if arguments.reference is None else read_json_lines(arguments.reference)
            answers = reference_answers(originals)[: suite.perplexity_answers]
            likelihoods = answer_likelihoods(client, tokenizer, answers)
            tasks, questions = run_tasks(
                client,
                checkpoint,
                suite.tasks,
                arguments.task_folder,
                suite.task_limit,
                serving.maximum_model_length,
            )
            served_by = client.version()
    provenance = {
        "sampling": {"temperature": 0.0, "max_tokens": suite.maximum_new_tokens, "seed": seed},
        "versions": {"vllm": served_by, "transformers": version("transformers"), "lm_eval": version("lm_eval")},
        "parity": parity,
    }
    write_json(arguments.utility, {"answers": likelihoods, "tasks": tasks, "questions": questions, **provenance})
    write_json_lines(arguments.completions, ({**completion, **provenance} for completion in completions))


if __name__ == "__main__":
    main()
