"""The estimate of what the paper's grid takes follows its configuration and adds up."""

from __future__ import annotations

import pytest
from project import ROOT

from aird.configuration.loading import load_configuration
from aird.configuration.local_files import load_yaml_strictly
from benchmarks import resources

# Published parameter counts, in billions.
PUBLISHED = {
    "llama-2-7b-chat": 6.738,
    "llama-3-8b-instruct": 8.030,
    "qwen2.5-7b-instruct": 7.616,
    "gemma-2-9b-it": 9.242,
    "mistral-7b-instruct-v0.3": 7.248,
}


def test_the_document_is_current() -> None:
    configuration = load_configuration(load_yaml_strictly(ROOT / "config" / "paper.yaml"))
    assert resources.SHAPES.keys() == configuration.models.keys()
    text = (ROOT / "docs" / "resources.md").read_text(encoding="utf-8")
    assert text == resources.document(configuration), "run `python -m benchmarks.resources`"


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_give_the_published_number_of_weights(name: str) -> None:
    assert resources.SHAPES[name].parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.001)


def test_longer_answers_cost_time_and_no_node_is_free() -> None:
    values = load_yaml_strictly(ROOT / "config" / "paper.yaml")
    shape = resources.SHAPES["llama-3-8b-instruct"]
    long = resources.nodes(shape, load_configuration(values))
    values["suites"]["advbench"]["maximum_new_tokens"] = 64
    short = resources.nodes(shape, load_configuration(values))
    assert short["evaluate_suite"].seconds < long["evaluate_suite"].seconds
    assert all(min(node.memory, node.disk, node.seconds) > 0 and node.gpu >= 0 for node in long.values())
