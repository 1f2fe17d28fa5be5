"""The protocol of a source: every kind has all of it, its functions' parameters are all known, and what it refuses."""

import inspect
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from grape_rl import ALGORITHMS
from grape_rl.config.files import merge
from grape_rl.data.types import DATA_TYPE_COLUMNS
from grape_rl.sources.comparisons import Comparisons
from grape_rl.sources.demonstrations import Demonstrations
from grape_rl.sources.labels import Labels
from grape_rl.sources.method_function import MethodFunction
from grape_rl.sources.preferences import Preferences
from grape_rl.sources.requirement import DataRequirement
from grape_rl.sources.responses import Responses
from grape_rl.sources.sampled_preferences import SampledPreferences
from grape_rl.sources.source import Source
from grape_rl.sources.steps import Steps
from grape_rl.validation import load_config

EXAMPLES = {
    Demonstrations: "sft", Responses: "grpo", Preferences: "dpo", SampledPreferences: "online_dpo", Labels: "kto",
    Comparisons: "reward_model", Steps: "process_reward_model",
}  # fmt: skip
"""A method of each kind of source."""
DATA_KINDS = [name for name in EXAMPLES.values() if not ALGORITHMS[name].source.samples]
SAMPLED_KINDS = [name for name in EXAMPLES.values() if ALGORITHMS[name].source.samples]


def base(method):
    reward = {"reward": {"function": "f.py:f"}} if ALGORITHMS[method].source.samples else {}
    return {"method": method, "data": {"source": "rows.jsonl"}, **reward}


def complaint(method, change):
    with pytest.raises(ValueError) as error:
        load_config(merge(base(method), change))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_kind_of_source_has_a_method():
    assert {type(method.source) for method in ALGORITHMS.values()} == EXAMPLES.keys()


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_a_kind_implements_the_whole_protocol(kind):
    source = ALGORITHMS[EXAMPLES[kind]].source
    assert isinstance(source, Source) and kind in type(source).__mro__
    assert not inspect.isabstract(kind), kind.__abstractmethods__
    assert source.requirement.words and source.requirement.columns and source.needs.startswith(source.requirement.words)
    assert source.unit.endswith("s") and source.loss_fields
    types = {name for name, _ in DATA_TYPE_COLUMNS}
    assert source.requirement.types and types.issuperset(source.requirement.types)
    assert not (source.samples and source.trains_reward_model)
    assert load_config(base(EXAMPLES[kind])).method == EXAMPLES[kind]


def test_a_kind_that_lacks_a_member_cannot_be_created():
    @dataclass(frozen=True)
    class Half(Source):
        requirement: ClassVar[DataRequirement] = ALGORITHMS["sft"].source.requirement
        unit: ClassVar[str] = "halves"

    with pytest.raises(TypeError, match="abstract"):
        Half()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_parameter_of_a_method_s_functions_is_an_input_or_an_option(name):
    for function in ALGORITHMS[name].functions:
        assert function.parameters.keys() == function.reads | function.options.keys(), function
        assert not function.reads & function.options.keys()


def weigh(reward, group, scale: float = 1.0, group_weight: float = 0.5):
    """A function with an input, a name that is an input elsewhere, and two options."""
    return scale * reward


def test_a_method_function_tells_inputs_from_options():
    function = MethodFunction(weigh, frozenset({"reward", "group", "mask", "scale"}))
    assert function.name == "weigh"
    assert function.reads == {"reward", "group", "scale"}
    assert function.options == {"group_weight": (float, 0.5)}
    assert function.keywords({"scale": 3.0, "group_weight": 2.0, "other": 1}) == {"group_weight": 2.0}
    assert MethodFunction(weigh, frozenset({"reward", "group"})).bind({"scale": 3.0})(torch.ones(1), None) == 3


@pytest.mark.parametrize("method", DATA_KINDS)
def test_a_source_of_data_has_nothing_to_revise(method):
    message = f"config: revise: {method} samples no responses, so there is nothing to revise"
    assert complaint(method, {"revise": {"per_group": 1}}) == message


@pytest.mark.parametrize("method", SAMPLED_KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": {"function": None}}, "reward: {} learns from rewards: set exactly one of rubric, function and mo"),
        ({"revise": {"per_group": 1}}, "revise: a critique needs the verdicts of a rubric: set reward.rubric"),
        ({"group_size": 1}, "group_size is 1: {} compares the responses to a prompt, so it needs at least 2"),
        (
            {"sampling": {"temperature": 0}},
            "sampling: at temperature 0 all responses are equal: {} would learn nothing",
        ),
    ],
)
def test_a_source_that_samples_refuses_settings_that_it_cannot_learn_from(method, change, message):
    assert complaint(method, change).startswith(f"config: {message.format(method)}")


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("grpo", {"sampling": {"top_k": 3}}, "sampling: grpo needs tokens from the whole distribution of the policy"),
        (
            "ppo",
            {"options": {"kl_target": 6.0, "kl_in_reward": 0.0}},
            "options: kl_target adapts the coefficient kl or",
        ),
        ("gdpo", {}, "reward: gdpo reads the items of a rubric: set reward.rubric, or use grpo"),
        ("online_dpo", {"options": {"pairing": "revised"}}, "options: pairing is 'revised' but nothing is revised"),
        ("sft", {"data": {"source": None, "tasks": {"gcd": {}}, "held_out_rows": 2}}, "data: held_out_rows of tasks"),
        ("mixture", {"options": {"dpo": 0.0}}, "mixture: every loss has coefficient 0, so there is nothing to learn"),
    ],
)
def test_a_kind_refuses_what_it_alone_cannot_do(method, change, message):
    assert complaint(method, change).startswith(f"config: {message}")


def test_sampled_pairs_may_come_from_a_cut_distribution():
    assert load_config(merge(base("online_dpo"), {"sampling": {"top_k": 3}})).sampling.top_k == 3


def test_training_temperature_and_length_are_those_of_what_is_learned():
    config = load_config(merge(base("grpo"), {"sampling": {"temperature": 0.5, "max_tokens": 7}}))
    found = {
        name: (ALGORITHMS[name].source.training_temperature(config), ALGORITHMS[name].source.max_tokens(config))
        for name in [*EXAMPLES.values(), "rejection_sampling"]
    }
    assert found["grpo"] == found["online_dpo"] == (0.5, 7)
    assert found["rejection_sampling"] == (1.0, 7), "it imitates"
    assert {found[name] for name in DATA_KINDS} == {(1.0, config.data.max_length)}


def test_a_rubric_is_needed_where_its_items_are_read():
    assert {n for n, m in ALGORITHMS.items() if getattr(m.source, "needs_rubric", False)} == {"grape", "gdpo"}
    assert replace(ALGORITHMS["grpo"].source, compared=weigh).needs_rubric
    assert ALGORITHMS["grape"].source.needs == "prompts, a rubric, 2 or more responses a prompt"
