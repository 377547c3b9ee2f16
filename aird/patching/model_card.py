"""The model card of a patch: what was done and how to use it, with the hub's standard metadata.

The patch's folder and the merged checkpoint carry it as README.md. Numbers are known only after the evaluation: the
card is then made again from the same record, with sections more (aird/reporting/evaluated_card.py, `aird push`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aird.patching.method import Method
from aird.patching.methods import method
from aird.settings.sources import read_hub_name

TAGS = ("aird", "refusal", "safety", "model-compression")
LIMITS = (
    "It is made to restore refusals, and does not make a model safe: measure refusal, over-refusal and utility on "
    "prompts of your own use before you rely on it (`aird evaluate`).\n"
)
LIMITS_OF_A_COMPARISON = (
    "A {kind} for comparison. Measure refusal, over-refusal and utility on prompts of your own use before you rely on "
    "it.\n"
)
ARDITI = "Arditi et al., arXiv 2406.11717"
# `direction` of a control -> (what it is, what each edit adds, and from what)
CONTROLS = {
    "random": (
        "a control along a random direction",
        "r · row",
        f"with r a random unit vector in the place of the refusal direction ({ARDITI})",
    ),
    "free": (
        "a control with learnt columns",
        "column · row",
        f"with columns that are learnt from a random start, in the place of the refusal direction ({ARDITI})",
    ),
}
LOADING_MERGED = (
    "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder"{attention})\n'
    'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n```\n\n'
    "```bash\nvllm serve path/to/this/folder\n```\n"
)
LOADING = (
    "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
    'base = AutoModelForCausalLM.from_pretrained("{base}"{arguments})\n'
    "base(**base.dummy_inputs)  # only where compressed-tensors packed the base: this unpacks it\n"
    'model = PeftModel.from_pretrained(base, "path/to/this/folder")\n```\n\n'
)
SERVING = (
    "```bash\nvllm serve {base}{pinned} --enable-lora --max-lora-rank {rank} --lora-modules aird=path/to/this/folder\n"
    "```\n\nthen ask for the model `aird`.\n"
)
# The export looks each edited matrix up in the GGUF file, so it may refuse one.
SERVING_BY_LLAMA_CPP = (
    "\nOr by llama.cpp, beside a GGUF file of the same model (`model.gguf`; measure the patch on that file too):\n\n"
    "```bash\naird export --gguf path/to/this/folder adapter.gguf --base model.gguf\n"
    "llama-server -m model.gguf --lora adapter.gguf\n```\n\n"
    "The export writes nothing where the file holds an edited matrix under no known name, or in another order.\n"
)
# A GGUF file stays as it is: llama.cpp adds the patch while it runs. Transformers and vLLM have its decoded weights.
LOADING_GGUF = (
    "```bash\n{first}aird export --gguf path/to/this/folder adapter.gguf\nllama-server {served} --lora adapter.gguf\n"
    "```\n\nor with Transformers, on the file's decoded weights:\n\n"
    "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
    'base = AutoModelForCausalLM.from_pretrained("{folder}", gguf_file="{file}"{arguments})\n'
    'model = PeftModel.from_pretrained(base, "path/to/this/folder")\n```\n\n'
    "or with vLLM, on a dense checkpoint of the same decoded weights{fetched}:\n\n"
    "```python\nfrom pathlib import Path\n\nimport torch\nfrom aird.models.gguf_import import dequantise_gguf\n\n"
    'Path("decoded").mkdir()\ndequantise_gguf(Path("{path}"), Path("decoded"), torch.bfloat16)\n```\n\n'
    '(where its tokenizer is refused, `original=Path("folder")` gives it that of the model that it was made from)\n\n'
    "```bash\nvllm serve decoded --enable-lora --max-lora-rank {rank} --lora-modules aird=path/to/this/folder\n```\n\n"
    "then ask for the model `aird`.\n"
)
FETCHING_GGUF = "hf download {repository} {file}{pinned} --local-dir ."
SERVING_EXPERTS = (
    "Servers take no adapter of experts in PEFT's form (`target_parameters`): merge it first "
    "(`PeftModel.merge_and_unload`, or the workflow's `merged_checkpoints`).\n"
)


def patch_card(
    record: Mapping[str, Any], base: str, licence: str | None, merged: bool = False, sections: Iterable[str] = ()
) -> str:
    """Return the card of a patch.

    Args:
        record: what is written about the patch (`statistics.json`), with the `revision` of a base on the hub.
        base: hub id, folder or name of the compressed checkpoint.
        licence: the base's licence; None leaves it out.
        merged: the card of the merged checkpoint instead of the adapter's.
        sections: what stands in front of its limits, each ending in a line break.
    """
    from huggingface_hub.repocard_data import CardData

    made_by = method(record["settings"]["method"])
    settings = {name: record["settings"][name] for name in made_by.settings.model_fields if name in record["settings"]}
    record = {**record, "settings": settings}  # in their own order, whatever that of the file
    attention = record.get("attention")
    loading = _loading(base, settings.get("rank", 1), "experts" in record, attention, record.get("revision"))
    if made_by.usage is None:
        tags, title, introduction, facts = _rank_one(record, made_by, base, merged)
        limits = LIMITS_OF_A_COMPARISON.format(kind="control") if settings["direction"] in CONTROLS else LIMITS
        heading, use = "How to load it", loading
    else:
        tags, title, introduction, facts = _baseline(record, made_by, base)
        limits = LIMITS_OF_A_COMPARISON.format(kind="baseline")
        heading, use = "How to use it", made_by.usage.format(loading=loading)
    metadata = CardData(
        base_model=_repository(base),
        base_model_relation="finetune" if merged else "adapter",
        library_name="peft" if made_by.adapter and not merged else "transformers",
        pipeline_tag="text-generation",
        license=licence,
        tags=[*TAGS, *tags],
    )
    parts = [
        f"# {title}\n\n{introduction}\n",
        f"## What was done\n\n{facts_table(facts)}",
        f"## {heading}\n\n{LOADING_MERGED.format(attention=_arguments(attention)) if merged else use}",
        *sections,
        f"## Limits\n\n{limits}",
    ]
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(parts)


def facts_table(facts: Mapping[str, str]) -> str:
    """Return named facts as a Markdown table."""
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in facts.items())


def _loading(base: str, rank: int, experts: bool, attention: str | None, revision: str | None = None) -> str:
    """Return how a patch is loaded on its base, of the hub at that commit if it is known."""
    path, chosen = Path(base), _arguments(attention, revision)
    pinned = "" if revision is None else f" --revision {revision}"
    if path.suffix.lower() == ".gguf":
        hub = read_hub_name(base)
        if hub is not None and hub.file is not None:
            fetch = FETCHING_GGUF.format(repository=hub.repository, file=hub.file, pinned=pinned)
            names = {"folder": hub.repository, "file": hub.file, "path": hub.file}
            if revision is None:
                names |= {"first": "", "served": f"-hf {hub.repository} -hff {hub.file}"}
                fetched = f" (`{fetch}` fetches the file)"
            else:  # llama.cpp itself fetches a repository's newest state
                names |= {"first": f"{fetch}\n", "served": f"-m {hub.file}"}
                fetched = ""
        else:
            names = {"first": "", "served": f"-m {base}", "folder": str(path.parent), "file": path.name, "path": base}
            fetched = ""
        return LOADING_GGUF.format(**names, fetched=fetched, arguments=chosen, rank=rank)
    serving = SERVING_EXPERTS if experts else SERVING + SERVING_BY_LLAMA_CPP
    return (LOADING + serving).format(base=base, arguments=chosen, pinned=pinned, rank=rank)


def _arguments(attention: str | None, revision: str | None = None) -> str:
    """Return the arguments that load a base at its commit and with the attention that it needs, where there are any."""
    named = {"revision": revision, "attn_implementation": attention}
    return "".join(f', {name}="{value}"' for name, value in named.items() if value is not None)


def _repository(base: str) -> str:
    """Return what the hub's metadata call a base: the repository of a GGUF file on the hub, or the base's own name."""
    hub = read_hub_name(base) if ":" in base else None
    return base if hub is None else hub.repository


Parts = tuple[Sequence[str], str, str, Mapping[str, str]]  # further tags, title, introduction, facts


def _rank_one(record: Mapping[str, Any], made_by: Method, base: str, merged: bool) -> Parts:
    settings, direction = record["settings"], record["direction"]
    kind = {
        "original": "the original model",
        "own": "the compressed model itself",
        "random": "none: a random control",
        "free": "none: a control whose columns are learnt, from a random start",
    }
    facts = {
        "method": f"`{settings['method']}`: {made_by.summary}",
        "settings": ", ".join(f"`{name}: {value}`" for name, value in settings.items() if value is not None),
        **_choice(record),
        "direction of": kind[settings["direction"]],
        "its site": f"input of block {direction['layer']}, post-instruction token {direction['position']}",
        "its SHA-256": f"`{direction['sha256']}` (float64 bytes of the unit vector)",
        "edited blocks": ", ".join(map(str, record["blocks"])),
        "edited matrices": f"{len(record['edits'])}: {_modules(record['edits'])}",
        **({"not edited": "; ".join(record["not_edited"])} if record.get("not_edited") else {}),
        **{f"SHA-256 of `{name}`": f"`{value}`" for name, value in record.get("weights", {}).items()},
    }
    rank = settings.get("rank", 1)
    untouched = (
        "Every tensor that is not listed below is that of the base, bit by bit."
        if merged
        else f"The base stays bit-identical; the adapter is a LoRA of rank {rank}."
    )
    tags = [] if merged else ["lora", f"base_model:adapter:{_repository(base)}"]
    # What the edit does is not measured yet, so the card says what it was made for.
    if settings["direction"] in CONTROLS:
        what, added, along = CONTROLS[settings["direction"]]
        purpose, tags = f"Made to compare a repair of refusal with, in `{base}`.", [*tags, "control"]
    else:
        what, added = "a repair of refusal", "r · row"
        purpose = f"Made to repair the refusal of harmful requests in `{base}`."
        along = f"with r the unit refusal direction ({ARDITI}; the repair is named by arXiv 2504.04215)"
    if rank > 1:
        added, along = f"{added} + U · rows", f"{along}, and U the first singular directions of each matrix's error"
    introduction = (
        f"{purpose} This {'checkpoint has' if merged else 'is'} a rank-{rank} edit W' = W + {added} of matrices that "
        f"write to the residual stream, {along}. {untouched}"
    )
    return tags, f"A compressed model with {what}" if merged else f"AIRD adapter: {what}", introduction, facts


def _baseline(record: Mapping[str, Any], made_by: Method, base: str) -> Parts:
    settings = record["settings"]
    facts = {"method": f"`{settings['method']}`: {made_by.summary}"} | {
        name.replace("_", " "): f"`{value}`" for name, value in settings.items() if name != "method"
    }
    facts |= _choice(record)
    title = f"Baseline: {made_by.summary.split(':')[0]}"
    return ["baseline"], title, f"Made to compare a repair of refusal with, in `{base}`.", facts


def _choice(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what a choice on validation prompts, and columns that were learnt, add to the facts."""
    facts = {}
    if "calibration" in record:
        facts["strength"] = f"{record['calibration']['strength']}: {record['calibration']['reason']}"
        facts |= {"learnt": record["calibration"]["learns"]} if "learns" in record["calibration"] else {}
    cosines = [edit["cosine_with_direction"] for edit in record["edits"] if "cosine_with_direction" in edit]
    if cosines:
        facts["cosine of columns with the direction"] = f"{min(cosines):.2f} to {max(cosines):.2f}, without sign"
    return facts


def _modules(edits: Sequence[Mapping[str, Any]]) -> str:
    names = [f"`{edit['module']}`" for edit in edits]
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:2])} … {names[-1]}"
