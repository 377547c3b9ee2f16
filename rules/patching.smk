"""AIRD patches: W' = W_c + r r^T (a W_c + b W_o), a rank-1 edit (aird/patching/edits.py).

input   what the method of a patch asks for (aird/patching/methods/): the original's refusal
        direction, both checkpoints, the prompts to learn from, the original's replies to them,
        the texts of those attacks of a suite that it names, in a file of their own
output  results/patches/{model}/{compression}/{patch}/: adapter/ (PEFT, rank 1) and
        statistics.json; merged/ on request
steps   make_patch: read the edited matrices, compute the row r^T (a W_c + b W_o), write the adapter;
        learn_patch: run the models on these prompts, and fit or learn the rows
"""

from aird.patching.methods import method_of, needs_of, sizes_of
from aird.plugin import METHODS as METHOD_FILES

ADAPTER = f"{RESULTS}/patches/{{model}}/{{compression}}/{{patch}}/adapter"
ADAPTER_STATISTICS = (
    f"{RESULTS}/patches/{{model}}/{{compression}}/{{patch}}/statistics.json"
)
REPLIES = f"{RESULTS}/patches/{{model}}/replies.safetensors"
LEARNT_TEXTS = f"{RESULTS}/attacks/learnt/{{patch}}.json"

METHODS = {name: method_of(patch) for name, patch in CONFIGURATION.patches.items()}
NEEDS = {name: needs_of(patch) for name, patch in CONFIGURATION.patches.items()}
LEARNT = [name for name in NEEDS if "prompts" in NEEDS[name]]
# Everything waits for the only patch of a grid that learns.
LEARNING_THREADS = (
    ALL_THREADS
    if sum(patch in LEARNT for *_, patch in CONFIGURATION.cells()) == 1
    else THREADS
)
# What can be merged into a checkpoint.
ADAPTERS = [name for name, method in METHODS.items() if method.adapter]


def code_of_method(script):
    """Return an input function that names the code of a script and of a patch's own method.

    An edit of one method so makes the patches of that method again and no others. The records are written while the
    workflow is parsed: once Snakemake has listed their folder, it does not see new ones.
    """
    chosen = {
        name: [
            METHOD_FILES.file(patch.method),
            *attack_plugins(attacks_learnt(name)),
        ]
        for name, patch in CONFIGURATION.patches.items()
    }
    return checkpoint_code(script, "patch", chosen)


def needed(need, path):
    """Return an input function that names a file for the patches that need it.

    Any other patch neither waits for that file nor is made again with it.
    """
    return lambda wildcards: (
        [path.format(**wildcards)] if need in NEEDS[wildcards.patch] else []
    )


def attacks_learnt(patch):
    """Return the attacks that a patch learns from, by their names; of most patches none."""
    learnt = getattr(CONFIGURATION.patches[patch], "attacks", None)
    if learnt is None:
        return {}
    attacks = CONFIGURATION.suites[learnt.suite].attacks
    return {name: attacks[name] for name in learnt.names}


def learnt_texts(wildcards):
    """Return the texts of the attacks that a patch learns from; any other patch does not wait for them."""
    return [LEARNT_TEXTS.format(**wildcards)] if attacks_learnt(wildcards.patch) else []


def patch_settings(wildcards):
    """Return what a patch depends on: its own settings, and which prompts and attacks it sees."""
    patch = CONFIGURATION.patches[wildcards.patch]
    values = {"patch": patch.model_dump(exclude={"compressions"})}
    if wildcards.patch in LEARNT:
        sizes = sizes_of(patch, DIRECTIONS, CONFIGURATION.replies)
        values |= {"sizes": sizes, "seed": SEED}
    attacks = attacks_learnt(wildcards.patch)
    if attacks:
        values["attacks"] = {
            name: attack.model_dump(exclude={"count"})
            for name, attack in attacks.items()
        }
    return canonical_json(values)


rule record_replies:
    input:
        **model_job(code("record_replies")),
        checkpoint=ancient(ORIGINAL_CHECKPOINT),
        manifest=ORIGINAL_MANIFEST,
        harmful=prompts(CONFIGURATION.learnt_set("harmful")),
        harmless=prompts(CONFIGURATION.learnt_set("harmless")),
    output:
        REPLIES,
    log:
        f"{RESULTS}/logs/patches/{{model}}/replies.log",
    benchmark:
        f"{RESULTS}/benchmarks/patches/{{model}}/replies.tsv"
    # It takes long, needs the original alone, and patches that learn wait for it.
    priority: 15
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(4000),
        runtime=60,
        gpu=gpus,
    params:
        **flags(
            settings=canonical_json(CONFIGURATION.replies.sizes),
            seed=SEED,
        ),
    message:
        "Recording the replies of {wildcards.model}"
    shell:
        'python "$SCRIPTS"/record_replies.py --gpus {resources.gpu} {params.flags:q} > {log:q} 2>&1'


LEARNT_CODE = {
    patch: code("read_attack_texts", *attack_plugins(attacks_learnt(patch)))
    for patch in CONFIGURATION.patches
}


use rule attack_texts as learnt_attack_texts with:
    input:
        code=lambda wildcards: LEARNT_CODE[wildcards.patch],
        files=lambda wildcards: attack_files(attacks_learnt(wildcards.patch)),
    output:
        LEARNT_TEXTS,
    log:
        f"{RESULTS}/logs/attacks/learnt/{{patch}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/attacks/learnt/{{patch}}.tsv"
    wildcard_constraints:
        patch=one_of(filter(attacks_learnt, CONFIGURATION.patches)),
    params:
        **flags(
            settings=lambda wildcards: attack_settings(
                attacks_learnt(wildcards.patch)
            ),
        ),
    message:
        "Reading the attacks that {wildcards.patch} learns from"


rule make_patch:
    input:
        code=code_of_method("make_patch"),
        arithmetic=needed("arithmetic", ARITHMETIC),
        original=ancient(needed("original", ORIGINAL_CHECKPOINT)),
        original_manifest=needed("compressed", ORIGINAL_MANIFEST),
        compressed=ancient(needed("compressed", CHECKPOINT)),
        compressed_manifest=needed("compressed", MANIFEST),
        direction=needed("direction", ORIGINAL_DIRECTION),
        direction_record=needed("direction", ORIGINAL_DIRECTION_RECORD),
        own=needed("own", DIRECTION),
        own_record=needed("own", DIRECTION_RECORD),
        replies=needed("replies", REPLIES),
        harmful=needed("prompts", prompts(CONFIGURATION.learnt_set("harmful"))),
        harmless=needed("prompts", prompts(CONFIGURATION.learnt_set("harmless"))),
        attacks=learnt_texts,
    output:
        adapter=directory(ADAPTER),
        statistics=ADAPTER_STATISTICS,
    log:
        f"{RESULTS}/logs/patches/{{model}}/{{compression}}/{{patch}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/patches/{{model}}/{{compression}}/{{patch}}.tsv"
    wildcard_constraints:
        patch=one_of([name for name in METHODS if name not in LEARNT]),
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=lambda wildcards: METHODS[wildcards.patch].memory_mb,
        runtime=lambda wildcards: METHODS[wildcards.patch].minutes,
        gpu=0,
    params:
        **flags(
            settings=patch_settings,
        ),
    message:
        "Patching {wildcards.model}, {wildcards.compression} by {wildcards.patch}"
    shell:
        'python "$SCRIPTS"/make_patch.py --gpus {resources.gpu} --base {wildcards.compression:q}'
        " {params.flags:q} > {log:q} 2>&1"


use rule make_patch as learn_patch with:
    wildcard_constraints:
        patch=one_of(LEARNT),
    # The longest of the patches: its evaluation should not be what the run ends on.
    priority: 5
    threads: LEARNING_THREADS
    resources:
        # One model at a time is in memory.
        mem_mb=lambda wildcards: memory(METHODS[wildcards.patch].memory_mb)(wildcards),
        runtime=lambda wildcards: METHODS[wildcards.patch].minutes,
        gpu=gpus,
    message:
        "Learning {wildcards.patch} for {wildcards.model}, {wildcards.compression}"


rule merge_patch:
    input:
        code=code_of_method("merge_patch"),
        compressed=ancient(CHECKPOINT),
        compressed_manifest=MANIFEST,
        adapter=ancient(ADAPTER),
        statistics=ADAPTER_STATISTICS,
    output:
        checkpoint=directory(
            f"{RESULTS}/patches/{{model}}/{{compression}}/{{patch}}/merged/checkpoint"
        ),
        manifest=f"{RESULTS}/patches/{{model}}/{{compression}}/{{patch}}/merged/manifest.json",
    log:
        f"{RESULTS}/logs/patches/{{model}}/{{compression}}/{{patch}}.merge.log",
    benchmark:
        f"{RESULTS}/benchmarks/patches/{{model}}/{{compression}}/{{patch}}.merge.tsv"
    wildcard_constraints:
        patch=one_of(ADAPTERS),
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=lambda wildcards: 4000 + weights_mb(wildcards.model),
        runtime=30,
    params:
        **flags(),
    message:
        "Merging {wildcards.patch} into {wildcards.model}, {wildcards.compression}"
    shell:
        'python "$SCRIPTS"/merge_patch.py {params.flags:q} > {log:q} 2>&1'
