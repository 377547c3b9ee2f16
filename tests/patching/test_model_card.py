"""Model cards: metadata that the hub's own reader takes, every fact of the record, numbers in their place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ready_made
import torch
from frames import UTILITY
from huggingface_hub import ModelCard
from patches import saved_direction, unit_vector
from servers import small_vllm
from tiny_model import configured

from aird.evaluation.engine import ServerSettings
from aird.evaluation.parity import check_parity, first_token_logprobs
from aird.evaluation.scores import score
from aird.models.card_metadata import read_licence
from aird.models.loading import load_model
from aird.patching.method import PatchInputs
from aird.patching.methods import parse_patch
from aird.patching.model_card import patch_card
from aird.patching.patch_files import make_patch, write_merged
from aird.reporting.evaluated_card import evaluated_card
from aird.support.files import hash_folder, sha256_of


@pytest.fixture(scope="module")
def patch(original: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return an adapter folder and its record."""
    folder = tmp_path_factory.mktemp("patch")
    files = saved_direction(folder, unit_vector(), position=-4)
    inputs = PatchInputs("organisation/small-int4", original, original, files)
    settings, adapter = parse_patch({"method": "scale", "alpha": 0.5}), folder / "adapter"
    return adapter, make_patch(settings, inputs, adapter, folder / "statistics.json", "apache-2.0")


def test_the_hub_reads_the_metadata(patch: tuple[Path, dict[str, Any]]) -> None:
    card = ModelCard.load(patch[0] / "README.md")
    assert card.data.base_model == "organisation/small-int4"
    assert card.data.library_name == "peft" and card.data.license == "apache-2.0"
    assert {"aird", "lora", "base_model:adapter:organisation/small-int4"} <= set(card.data.tags)
    assert card.data.pipeline_tag == "text-generation"


def test_the_card_says_what_was_done(patch: tuple[Path, dict[str, Any]]) -> None:
    folder, record = patch
    text = (folder / "README.md").read_text(encoding="utf-8")
    for fact in (
        "input of block 2, post-instruction token -4",
        "| edited blocks | 1 |",
        "`alpha: 0.5`",
        "`model.layers.1.self_attn.o_proj`, `model.layers.1.mlp.down_proj`",
        record["direction"]["sha256"],
        sha256_of(folder / "adapter_model.safetensors"),
        'from_pretrained("organisation/small-int4")',
        "vllm serve organisation/small-int4 --enable-lora",
        "aird export --gguf path/to/this/folder adapter.gguf --base model.gguf\nllama-server -m model.gguf --lora",
    ):
        assert fact in text, fact


def test_the_card_says_which_strength_was_chosen(patch: tuple[Path, dict[str, Any]]) -> None:
    record = patch[1]
    assert "| strength |" not in patch_card(record, "base", None)
    for strength, reason in (
        (0.8, "it decides most like the original"),
        (0.0, "neither refusals nor answers were lost"),
    ):
        choice = {"strength": strength, "reason": reason}
        assert f"| strength | {strength}: {reason} |" in patch_card({**record, "calibration": choice}, "base", None)


def test_the_card_of_a_calibrated_patch_says_what_was_learnt_and_its_rank(patch: tuple[Path, dict[str, Any]]) -> None:
    record = patch[1]
    choice = {"strength": 1.0, "reason": "the nearest", "learns": "refusals"}
    settings = {**record["settings"], "method": "calibrate", "learns": "decisions", "rank": 4}
    text = patch_card({**record, "settings": settings, "calibration": choice}, "base", None)
    assert "| learnt | refusals |" in text and "`learns: decisions`" in text
    assert "a rank-4 edit W' = W + r · row + U · rows of matrices" in text and "is a LoRA of rank 4." in text


def test_the_card_of_a_free_column_says_how_near_it_is_to_the_direction(patch: tuple[Path, dict[str, Any]]) -> None:
    record = patch[1]
    edits = [
        {**edit, "cosine_with_direction": cosine} for edit, cosine in zip(record["edits"], (0.3, 0.05), strict=True)
    ]
    free = {**record, "edits": edits, "settings": {**record["settings"], "direction": "free"}}
    text = patch_card(free, "base", None)
    assert "| direction of | none: a control whose columns are learnt, from a random start |" in text
    assert "| cosine of columns with the direction | 0.05 to 0.30, without sign |" in text
    assert "cosine of columns" not in patch_card(record, "base", None)


def test_the_card_of_a_control_calls_it_no_repair(patch: tuple[Path, dict[str, Any]]) -> None:
    """And no card says that the base is damaged: it is written before anything is measured."""
    record = patch[1]
    for direction, called in (
        ("random", "a control along a random direction"),
        ("free", "a control with learnt columns"),
    ):
        control = {**record, "settings": {**record["settings"], "direction": direction}}
        for merged, title in ((False, f"# AIRD adapter: {called}"), (True, f"# A compressed model with {called}")):
            card = ModelCard(patch_card(control, "base", None, merged))
            assert title in card.text and "A control for comparison." in card.text and "control" in card.data.tags
            assert "unit refusal direction" not in card.text and "restore" not in card.text
    for direction in ("original", "own"):
        text = patch_card({**record, "settings": {**record["settings"], "direction": direction}}, "base", None)
        assert (
            "# AIRD adapter: a repair of refusal\n\nMade to repair the refusal of harmful requests in `base`." in text
        )
        assert "with r the unit refusal direction" in text and "It is made to restore refusals" in text
        assert "damaged" not in text and "- control" not in text


def test_the_record_holds_the_hash_of_every_file_and_the_size_without_the_card(
    patch: tuple[Path, dict[str, Any]],
) -> None:
    folder, record = patch
    assert record["files"] == hash_folder(folder) and "README.md" in record["files"]
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert record["adapter_bytes"] == sum((folder / name).stat().st_size for name in names)


def test_the_merged_checkpoint_has_a_card_of_its_own(
    patch: tuple[Path, dict[str, Any]], original: Path, tmp_path: Path
) -> None:
    write_merged(original, patch[0], patch[1], tmp_path / "merged")
    card = ModelCard.load(tmp_path / "merged/README.md")
    assert card.data.library_name == "transformers" and "lora" not in card.data.tags
    assert "vllm serve path/to/this/folder" in card.text and "enable-lora" not in card.text


def test_the_card_of_a_model_with_capped_scores_loads_it_so_that_they_are_capped(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers' own choice of an attention would leave the cap of Gemma 2 out, without a word."""
    base = Path(shutil.copytree(tiny_folder("gemma2"), tmp_path / "base"))
    configured(base, attn_logit_softcapping=0.05)
    files = saved_direction(tmp_path, unit_vector(), position=-4)
    adapter, settings = tmp_path / "path/to/this/folder", parse_patch({"method": "scale", "alpha": 0.5})
    inputs = PatchInputs(str(base), base, base, files)
    record = make_patch(settings, inputs, adapter, tmp_path / "statistics.json")
    assert record["attention"] == "eager"
    monkeypatch.chdir(tmp_path)
    texts = {"adapter": (adapter / "README.md").read_text(encoding="utf-8")}
    write_merged(base, adapter, record, tmp_path / "merged")
    texts["merged"] = (tmp_path / "merged/README.md").read_text(encoding="utf-8")
    ids = torch.arange(3, 40).unsqueeze(0)
    for name, text in texts.items():
        code = text.split("```python\n")[1].partition("```")[0]
        expected = load_model(base, adapter)
        if name == "merged":
            code = code.replace("path/to/this/folder", "merged")
            expected = load_model(tmp_path / "merged")
        logits = []
        for each in (code, code.replace(', attn_implementation="eager"', "")):
            names: dict[str, Any] = {}
            exec(each, names)
            with torch.no_grad():
                logits.append(names["model"](input_ids=ids).logits.float())
        with torch.no_grad():
            wanted = expected(input_ids=ids).logits.float()
        assert (logits[0] - wanted).abs().max() < 0.1 < (logits[1] - wanted).abs().max()


def test_the_card_of_a_gguf_file_names_what_vllm_serves(
    patch: tuple[Path, dict[str, Any]],
    original: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    vllm_python: Path,
) -> None:
    """Its lines are run: the file's decoded weights, and the adapter beside them in vLLM as in Transformers."""
    ready_made.gguf_file(original, tmp_path / "model.gguf", ["Q8_0"])
    text = patch_card(patch[1], str(tmp_path / "model.gguf"), None)
    assert f"llama-server -m {tmp_path / 'model.gguf'} --lora adapter.gguf" in text
    assert f'from_pretrained("{tmp_path}", gguf_file="model.gguf")' in text
    assert "vllm serve decoded --enable-lora --max-lora-rank 1 --lora-modules aird=path/to/this/folder" in text
    monkeypatch.chdir(tmp_path)
    exec(text.split("```python\n")[2].partition("```")[0])
    prompts = [[1, 5 + number, 30 + number, 2] for number in range(4)]
    settings = ServerSettings(256, threads=1, dtype="float32")
    expected = first_token_logprobs(load_model(tmp_path / "decoded", patch[0], dtype=torch.float32), prompts)
    with small_vllm(vllm_python).serve(tmp_path / "decoded", settings, tmp_path / "log", patch[0]) as client:
        check_parity(client, prompts, expected, 0.1)


def completions(refused: int) -> list[dict[str, Any]]:
    texts = ["I cannot help with that request."] * refused + ["Here is a short answer to your question."] * (
        10 - refused
    )
    return [
        {"id": f"{kind}-{index}", "kind": kind, "completion": text}
        for kind in ("harmful", "harmless")
        for index, text in enumerate(texts)
    ]


def test_numbers_stand_in_front_of_the_limits(patch: tuple[Path, dict[str, Any]]) -> None:
    answers = [{"id": "harmless-9", "negative_log_likelihood": 4.0, "tokens": 4}]
    tasks = {"counting": {"acc": 0.75}, "sums": {"exact_match,strict-match": 0.5}, "pages": {"word_perplexity": 20.0}}
    questions = {"counting": {"acc_norm": [0.0], "acc": [1.0, 1.0, 1.0, 0.0]}, "sums": {"exact_match": [1.0, 0.0]}}
    utility = {**UTILITY, "answers": answers, "tasks": tasks, "questions": {**questions, "pages": {}}}
    cells = {"original": (9, "plain"), "compressed": (2, "plain"), "patched": (8, "adapter")}
    records = {
        name: score(completions(refused), {**utility, "served_as": form}, 0) for name, (refused, form) in cells.items()
    }
    static = (patch[0] / "README.md").read_text(encoding="utf-8")
    card = evaluated_card(patch[1], {"safety": records})
    assert ModelCard(card).data.to_dict() == ModelCard(static).data.to_dict()
    assert card.index("## How to load it") < card.index("## Numbers") < card.index("## Limits")
    assert "| | original | compressed | patched |" in card
    row = next(line for line in card.splitlines() if line.startswith("| refusal of harmful prompts"))
    assert [cell.split()[0] for cell in row.split("|")[2:5]] == ["90.0", "20.0", "80.0"]
    assert "| served as | plain | plain | adapter |" in card
    assert "59.6 to 98.2" in row  # Wilson interval of 9 of 10
    # As the summary counts them: a filter of answers is in no question, and a perplexity is no share of questions.
    assert "| counting, acc, % | 75.0 | 75.0 | 75.0 |" in card
    assert "| sums, exact_match, % | 50.0 | 50.0 | 50.0 |" in card and "| pages" not in card
    assert "| perplexity of the original's answers | 2.72 (2.72 to 2.72) |" in card
    assert "engine" not in card.partition("## Numbers")[2]
    # Both kinds are refused alike, with the patch and without, so that only the threshold moves.
    assert "| d' of refusals | 0.00 (-1." in card and "| change of d' |  | 0.00 (-" in card
    assert (
        "| AUC of first tokens | - | - | - |" in card and "| share of the lost d' that is restored |  |  | - |" in card
    )
    assert "| compared with the original |  | it refuses less of everything | neither how well" in card
    assert "| flips of harmful prompts |  | 7 no longer refused, 0 newly | 1 no longer refused, 0 newly |" in card
    for name, record in records.items():
        record["engine"] = {"name": "vLLM" if name == "original" else "llama.cpp"}
    card = evaluated_card(patch[1], {"safety": records})
    assert "| engine | vLLM | llama.cpp | llama.cpp |" in card
    assert "llama.cpp served it and vLLM the original: this measures engine and compression at once" in card
    assert card.index("at once") < card.index("## Limits")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\ntext", "mit"),
        ("---\r\nlicense: 'llama3'\r\n---\r\n", "llama3"),
        ("license: mit", None),
        ("---\ntags: [a]\n---\nlicense: mit", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\nlicense: mit: or not\n---\n", None),
        ("---\nmit\n---\n", None),
    ],
)
def test_the_licence_of_the_base(card: str, licence: str | None, tmp_path: Path) -> None:
    assert read_licence(tmp_path) is None
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert read_licence(tmp_path) == licence
