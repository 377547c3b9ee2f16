"""The refusal of compressed chat models: measured, explained, repaired.

Read this file, then the rules in the order of their inclusion: that is the
way of the data, and the method.
"""

from snakemake.utils import min_version

min_version("9.27")


# Another grid replaces the default one; Snakemake alone would merge the two.
if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "rules/common.smk"  # the checked configuration, and helpers of the rules
include: "rules/environments.smk"  # vLLM, in an environment of its own
include: "rules/prompts.smk"  # prompt sets from pinned sources
include: "rules/models.smk"  # the original checkpoint, and its refusal tuning
include: "rules/compression.smk"  # compressed checkpoints
include: "rules/activations.smk"  # activations at the post-instruction tokens
include: "rules/directions.smk"  # candidate scores, the refusal direction, its comparison
include: "rules/patching.smk"  # AIRD: rank-1 repairs
include: "rules/restoration.smk"  # does the original's direction come back?
include: "rules/evaluation.smk"  # completions and utility by vLLM, scores by judges
include: "rules/reporting.smk"  # tables, figures and the report


rule all:
    default_target: True
    input:
        TABLES,
        TIMINGS,
        FIGURES,
        SCORES,
        CARDS,
        REPORT,
    localrule: True
    message:
        "Tables, figures, model cards and results/report.html are made"


rule merged_checkpoints:
    input:
        MERGED_TABLE,
    localrule: True
    message:
        "Every patch is also merged into a checkpoint that stands alone; {input} says what that costs"
