"""How much work a job of each rule is, beside the others: seconds on one machine, for the default grid.

On a machine that has no times of its own yet, what is left is estimated from these and from how long its
first jobs took (`state.Run`). They need not be exact: the more jobs of a rule are done, the more their own
seconds count.

A finished run of the default grid gives new ones:

    PYTHONPATH=workflow/plugins python -m aird_progress.schedule --weights .snakemake/log/NAME.log
"""

# Two cores of an AMD EPYC with bfloat16 instructions. Guessed are those that the default grid does not have.
WEIGHTS = {
    "all": 0.0,
    "everything": 0.0,
    "merged_checkpoints": 0.0,
    "measure_arithmetic": 4.0,
    "prompt_set": 1.0,
    "vllm_environment": 67.0,
    "llama_cpp_environment": 10.0,
    "gptq_environment": 67.0,
    "gguf_environment": 15.0,
    "import_model": 37.0,
    "import_source_model": 37.0,
    "import_judge": 60.0,
    "attack_texts": 10.0,
    "learnt_attack_texts": 10.0,
    "tune_refusal": 200.0,
    "compress_model": 25.0,
    "import_given": 30.0,
    "refusal_tokens": 18.0,
    "capture_activations": 20.0,
    "score_candidates": 67.0,
    "find_cosmic_direction": 36.0,
    "select_direction": 4.0,
    "verify_direction": 22.0,
    "compare_directions": 2.5,
    "record_replies": 21.0,
    "make_patch": 6.0,
    "learn_patch": 115.0,
    "merge_patch": 6.0,
    "examine_patched": 40.0,
    "compare_restored": 4.0,
    "optimise_attacks": 300.0,
    "evaluate_suite": 53.0,
    "judge_completions": 50.0,
    "score_completions": 1.0,
    "make_tables": 3.0,
    "make_merged_table": 1.0,
    "make_figure": 2.0,
    "make_timings": 1.0,
    "make_cards": 0.5,
    "make_report": 5.0,
}
# How long these take is up to the network, and says nothing of the machine.
FETCHING = {
    "vllm_environment",
    "llama_cpp_environment",
    "gptq_environment",
    "gguf_environment",
    "import_model",
    "import_source_model",
    "import_judge",
    "attack_texts",
    "learnt_attack_texts",
    "import_given",
}
# What waits for a job of a rule, as far as it is long.
THEN = {
    "import_model": ("compress_model", "import_given", "refusal_tokens", "record_replies"),
    "import_source_model": ("tune_refusal",),
    "tune_refusal": ("compress_model", "import_given", "refusal_tokens", "record_replies"),
    "compress_model": ("capture_activations", "evaluate_suite"),
    "import_given": ("capture_activations", "evaluate_suite"),
    "refusal_tokens": ("capture_activations",),
    "capture_activations": ("score_candidates", "find_cosmic_direction"),
    "score_candidates": ("select_direction",),
    "select_direction": ("verify_direction", "compare_directions"),
    "find_cosmic_direction": ("make_tables",),
    "verify_direction": ("make_tables",),
    "compare_directions": ("make_tables",),
    "record_replies": ("learn_patch",),
    "make_patch": ("evaluate_suite", "examine_patched"),
    "learn_patch": ("evaluate_suite", "examine_patched"),
    "examine_patched": ("compare_restored",),
    "compare_restored": ("make_tables",),
    "optimise_attacks": ("evaluate_suite",),
    "evaluate_suite": ("judge_completions", "score_completions"),
    "judge_completions": ("score_completions",),
    "score_completions": ("make_tables",),
    "make_tables": ("make_timings", "make_figure"),
    "make_timings": ("make_report",),
    "make_figure": ("make_report",),
}
