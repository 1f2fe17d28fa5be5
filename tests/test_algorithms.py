"""Every row of the table: that it says what it is, can be set as it says, and trains. A new row inherits all of it."""

import inspect
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import grape_rl.run
from grape_rl import ALGORITHMS
from grape_rl.algorithms import FAMILIES
from grape_rl.cli.train import demo_config
from grape_rl.config import Config, from_file, laid_over, loaded
from grape_rl.maths.grape import confidence_weighted, unweighted
from grape_rl.maths.reduction import Reduction
from grape_rl.methods import Preferences, Responses, RowTerm, chosen_options, keywords, objective, options
from grape_rl.reward.rubric import load_rubric
from grape_rl.training.objective import FIELDS, PAIR_FIELDS
from small_runs import lines, weights

OF_PAIRS = [name for name, row in ALGORITHMS.items() if isinstance(row.source, Preferences)]
OF_TOKENS = [name for name in ALGORITHMS if name not in OF_PAIRS]
DESCENDING = [name for name, row in ALGORITHMS.items() if "epochs" in options(row)]
"""Methods whose update is passes over tokens by an optimizer, which have epochs and mini-batches."""
STEPPING = [*DESCENDING, *OF_PAIRS]
"""Methods whose update is steps of an optimizer, which has a learning rate."""


def small_demo(name, folder, **more):
    """The built-in demo of a method with a small model from scratch: enough responses that some are brief enough."""
    small = {
        "model": {"scratch": {"hidden": 32, "layers": 2, "heads": 2, "context": 128}},
        "data": {"rows": 12, "held_out_rows": 3},
        "evaluation": {"samples": 1},
        "optimizer": {"warmup": 0},
        "steps": 2,
        "prompts_per_step": 6,
        "group_size": 8,
        "output": str(folder / "run"),
        "device": "cpu",
    }
    return loaded(laid_over(laid_over(from_file(demo_config(name), name), small), more))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_row_trains_on_the_demo(name, tmp_path, monkeypatch):
    row, start = ALGORITHMS[name], {}
    begin = grape_rl.run.start_policy

    def watched(config, rows):
        policy = begin(config, rows)
        policy.model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
        start.update({key: p.detach().clone() for key, p in policy.model.named_parameters()})
        return policy

    monkeypatch.setattr(grape_rl.run, "start_policy", watched)
    run = grape_rl.train(small_demo(name, tmp_path))

    assert len(run.metrics) == 2
    for told in run.metrics:
        wanted = ["loss", "entropy", "grad_norm", *(["learning_rate"] if name in STEPPING else [])]
        assert ("learning_rate" in told) == (name in STEPPING)
        if isinstance(row.source, Responses):
            wanted += ["reward", "length", "cut_off", "equal_groups", "kl"]
        if isinstance(row.source, Preferences):
            wanted += ["accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_length", "rejected_length"]
        assert all(math.isfinite(told[key]) for key in wanted), told
        assert told["phase"] == name and told["grad_norm"] > 0
        assert not any(math.isinf(value) for value in told.values() if not isinstance(value, str))
    assert sorted(run.evaluations) == [0, 2]
    assert run.evaluations[2].responses == 3
    of_pairs = [item for item in run.evaluations[2].items if item.category == "preferences"]
    assert [item.graded for item in of_pairs] == ([3, 3, 3] if isinstance(row.source, Preferences) else [])

    assert yaml.safe_load((run.folder / "config.yaml").read_text()) == run.config.model_dump(mode="json")
    drawn = sorted((run.folder / "rollouts").iterdir())
    if isinstance(row.source, Responses):
        assert [path.name for path in drawn] == ["step-000001.jsonl", "step-000002.jsonl"]
        records = lines(drawn[0])
        assert len(records) == 48
        assert {"prompt", "response", "reward", "advantage", "verdicts", "finish"} <= records[0].keys()
        items = load_rubric(run.config.reward.rubric).categories[records[0]["category"]].items
        assert [verdict["item"] for verdict in records[0]["verdicts"]] == [item.id for item in items]
    else:
        assert not drawn

    end = weights(run.model)
    fixed = [key for key in start if torch.equal(end[key], start[key])]
    assert fixed == ["model.layers.0.mlp.up_proj.weight"], "the frozen parameter keeps its bits, and no other does"

    model = AutoModelForCausalLM.from_pretrained(run.model)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    assert all(torch.equal(value, end[key]) for key, value in model.state_dict().items() if key in end)
    assert tokenizer.eos_token_id is not None
    words = "Answer: 1 + 2"
    assert tokenizer.decode(tokenizer(words)["input_ids"]).count(" ") == words.count(" "), "the same tokenizer again"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_row_says_what_it_is(name):
    row = ALGORITHMS[name]
    assert row.name == name and name.isidentifier()
    assert row.summary.endswith(".") and len(row.summary) < 120
    assert "=" in row.equation and "\n" not in row.equation
    assert row.paper
    assert [family for family, rows in FAMILIES.items() if row in rows]
    assert demo_config(name).is_file()
    assert isinstance(loaded(from_file(demo_config(name), name)), Config)
    for function in row.functions:
        assert inspect.getdoc(inspect.unwrap(function)), function
    for term in row.terms:
        read = set(PAIR_FIELDS if isinstance(row.source, Preferences) else FIELDS)
        assert set(inspect.signature(term.function).parameters) - read <= options(row).keys()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_option_has_a_type_and_a_default_of_it(name):
    row = ALGORITHMS[name]
    found = options(row)
    of_tokens = {"reduction", "epochs", "minibatches"}
    if name in OF_PAIRS:
        assert found.keys().isdisjoint(of_tokens)
    else:
        assert found.keys() & of_tokens == (of_tokens if name in DESCENDING else {"reduction"})
    for option, (kind, default) in found.items():
        assert default is not inspect.Parameter.empty, option
        choices = get_args(kind)
        if choices and all(isinstance(choice, str) for choice in choices):
            assert default in choices, option
        else:
            assert isinstance(default, int | float), option
    assert chosen_options(row, {}) == {option: default for option, (_, default) in found.items()}


@pytest.mark.parametrize("name", OF_TOKENS)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reductoin": "token"}, "unknown key 'reductoin'; did you mean 'reduction'?"),
        ({"reduction": "tokens"}, "reduction: Input should be 'token', 'sequence' or 'fixed_length'"),
    ],
)
def test_every_row_refuses_options_that_are_none(name, given, message):
    with pytest.raises(ValueError) as told:
        chosen_options(ALGORITHMS[name], given)
    assert str(told.value).startswith(f"options of {name}: ") and message in str(told.value)


@pytest.mark.parametrize("name", OF_PAIRS)
@pytest.mark.parametrize("option", ["reduction", "epochs"])
def test_a_method_of_pairs_has_no_options_of_tokens(name, option):
    with pytest.raises(ValueError, match=f"options of {name}: unknown key '{option}'"):
        chosen_options(ALGORITHMS[name], {option: "token"})


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        *[(name, {"epochs": 0}, "epochs: Input should be greater than 0") for name in DESCENDING],
        *[(name, {"minibatches": -1}, "minibatches: Input should be greater than 0") for name in DESCENDING],
        *[(name, {"epochs": 1.5}, "epochs: Input should be a valid integer") for name in DESCENDING],
        ("trpo", {"epochs": 2}, "unknown key 'epochs'"),
        ("trpo", {"delta": 0.0}, "delta: Input should be greater than 0"),
        ("trpo", {"damping": -0.1}, "damping: Input should be greater than or equal to 0"),
        ("trpo", {"shrink": 1.0}, "shrink: Input should be less than 1"),
        ("trpo", {"cg_iterations": 0}, "cg_iterations: Input should be greater than 0"),
        ("trpo", {"backtracks": -1}, "backtracks: Input should be greater than or equal to 0"),
    ],
)
def test_an_update_refuses_options_that_are_none(name, given, message):
    with pytest.raises(ValueError) as told:
        chosen_options(ALGORITHMS[name], given)
    assert str(told.value).startswith(f"options of {name}: ") and message in str(told.value)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_is_set_reaches_the_functions(name):
    row = ALGORITHMS[name]
    numbers = {key: 0.125 for key, (kind, _) in options(row).items() if kind is float}
    more = {"epochs": 3} if name in DESCENDING else {}
    reduction = {"reduction": "fixed_length"} if name in OF_TOKENS else {}
    chosen = chosen_options(row, {**numbers, **more, **reduction})
    goal = objective(row, chosen)
    assert goal.reduction == reduction.get("reduction")
    assert len(goal.terms) == len(row.terms), "every penalty is switched on"
    for term, of_row in zip(goal.terms, row.terms, strict=True):
        assert term.coefficient == (0.125 if of_row.option else of_row.coefficient)
        assert not term.options.keys() & set(FIELDS)
        own = {key: value for key, value in chosen.items() if key in inspect.signature(term.function).parameters}
        assert term.options == {key: value for key, value in own.items() if key not in FIELDS}
    defaults = {
        p.name: p.default for p in inspect.signature(row.update).parameters.values() if p.default is not p.empty
    }
    assert keywords(row.update, chosen) == {**defaults, **more}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_penalty_without_a_coefficient_is_not_computed(name):
    row = ALGORITHMS[name]
    own = [term.function for term in row.terms if term.coefficient]
    assert [term.function for term in objective(row, chosen_options(row, {})).terms] == own
    off = {term.option: 0.0 for term in row.terms if term.option}
    assert [term.function for term in objective(row, chosen_options(row, off)).terms] == [row.terms[0].function]


def test_an_option_named_like_a_field_is_not_given_in_the_field_s_place():
    """The coefficient ``entropy`` is no argument of ``entropy_bonus(entropy)``."""
    row = ALGORITHMS["grpo"]
    (bonus,) = [t for t in objective(row, chosen_options(row, {"entropy": 0.5})).terms if t.parameters == ("entropy",)]
    assert (bonus.coefficient, dict(bonus.options)) == (0.5, {})


def test_a_row_s_own_default_takes_the_place_of_its_function_s():
    row = ALGORITHMS["dapo"]
    assert inspect.signature(row.terms[0].function).parameters["clip_high"].default == 0.2
    assert options(row)["clip_high"] == (float, 0.28)
    assert objective(row, chosen_options(row, {})).terms[0].options == {"clip_low": 0.2, "clip_high": 0.28}
    assert objective(row, chosen_options(row, {"clip_high": 0.5})).terms[0].options["clip_high"] == 0.5
    assert options(ALGORITHMS["grpo"])["clip_high"] == (float, 0.2), "another row of the same function"


def test_a_default_for_no_option_is_refused():
    row = replace(ALGORITHMS["grpo"], defaults={"clip_hi": 0.3})
    with pytest.raises(ValueError, match=r"grpo: has a default for \['clip_hi'\], and its options are scale, "):
        options(row)


@pytest.mark.parametrize("name", [name for name, row in ALGORITHMS.items() if row.defaults])
def test_a_default_that_changes_nothing_is_not_written(name):
    row = ALGORITHMS[name]
    own = options(replace(row, defaults={}))
    assert all(own[option][1] != default for option, default in row.defaults.items())


def test_no_two_rows_are_the_same():
    def parts(row):
        return row.source, row.terms, row.reduction, tuple(row.defaults.items()), row.update

    rows = list(ALGORITHMS.values())
    assert all(parts(a) != parts(b) for i, a in enumerate(rows) for b in rows[:i])


def test_a_coefficient_without_an_option_stays():
    row = replace(ALGORITHMS["sft"], terms=(RowTerm(ALGORITHMS["sft"].terms[0].function, 0.75),))
    assert objective(row, chosen_options(row, {})).terms[0].coefficient == 0.75


def test_the_reward_without_confidence_is_the_weighted_mean_whatever_the_confidence():
    nan = math.nan
    score = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.25, 0.5], [nan, 1.0]], dtype=torch.float64)
    confidence = torch.tensor([[0.1, 0.9], [0.7, 0.2], [1.0, 0.4], [nan, 0.3]], dtype=torch.float64)
    weight, group = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([0, 0, 0, 0])
    found = unweighted(score, confidence, weight, group)
    assert found[:3].tolist() == pytest.approx([0.25, (0.5 + 3) / 4, (0.25 + 1.5) / 4])
    filled = (1.0 + 0.5 + 0.25) / 3  # the group's mean in place of the missing score
    assert found[3].item() == pytest.approx((filled + 3) / 4)
    assert not torch.allclose(found, confidence_weighted(score, confidence, weight, group))
    uncertain = confidence.clone()
    uncertain[0, 1] = nan  # a verdict with no confidence is missing as well
    assert unweighted(score, uncertain, weight, group)[0].isnan()


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        ALGORITHMS["new"] = ALGORITHMS["sft"]
    assert get_args(Reduction) == ("token", "sequence", "fixed_length")
