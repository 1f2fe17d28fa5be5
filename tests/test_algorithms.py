"""Every method of the table: its texts, its options and their bounds, a short run. A new method is tested by itself."""

import inspect
import math
import re
from dataclasses import replace
from typing import get_args

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import grape_rl.run
from grape_rl import ALGORITHMS
from grape_rl.algorithms import FAMILIES
from grape_rl.cli.train import demo_config
from grape_rl.config.config import Config
from grape_rl.config.files import from_file, merge
from grape_rl.maths.bounds import NonNegative
from grape_rl.maths.grape import confidence_weighted, unweighted
from grape_rl.maths.reduction import Reduction
from grape_rl.methods import LossTerm, build_objective, method_options, resolve_options
from grape_rl.reward.rubric import load_rubric
from grape_rl.sources.comparisons import Comparisons
from grape_rl.sources.labels import Labels
from grape_rl.sources.preferences import Preferences
from grape_rl.sources.sampled_preferences import SampledPreferences
from grape_rl.sources.steps import Steps
from grape_rl.table.online import online_form
from grape_rl.training.objective import TOKEN_FIELDS
from grape_rl.validation import load_config
from small_runs import lines, weights

METHODS = [name for name, method in ALGORITHMS.items() if method.online_of in ("", "dpo", "simpo", "odpo", "aot")]
"""Every method but most online forms, which share everything but their source with the offline form: see
``test_an_online_form_differs_from_its_method_in_where_its_pairs_come_from``. Those that stay have a loss with a
reference, without one, with rewards in it, and one that compares pairs with each other."""

OF_SCORES = [name for name in METHODS if isinstance(ALGORITHMS[name].source, Comparisons | Steps)]
"""Methods that train a model to score responses instead of writing them."""
OF_PAIRS = [name for name in METHODS if isinstance(ALGORITHMS[name].source, Preferences | SampledPreferences)]
OF_LABELS = [name for name in METHODS if isinstance(ALGORITHMS[name].source, Labels)]
OF_TOKENS = [name for name in METHODS if name not in (*OF_PAIRS, *OF_LABELS, *OF_SCORES)]
DESCENDING = [name for name in METHODS if "epochs" in method_options(ALGORITHMS[name])]
"""Methods whose update is passes over tokens by an optimizer, with epochs and mini-batches."""
STEPPING = [*DESCENDING, *OF_PAIRS, *OF_LABELS, *OF_SCORES]
"""Methods whose update is steps of an optimizer, with a learning rate."""
ONLINE = [name for name, method in ALGORITHMS.items() if method.online_of]


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
    return load_config(merge(merge(from_file(demo_config(name), name), small), more))


@pytest.mark.parametrize("name", METHODS)
def test_every_row_trains_on_the_demo(name, tmp_path, monkeypatch):
    method, start = ALGORITHMS[name], {}
    begin = grape_rl.run.start_policy

    def watched(*given):
        policy = begin(*given)
        policy.model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
        start.update({key: p.detach().clone() for key, p in policy.model.named_parameters()})
        return policy

    monkeypatch.setattr(grape_rl.run, "start_policy", watched)
    run = grape_rl.train(small_demo(name, tmp_path))

    assert len(run.metrics) == 2
    for metrics in run.metrics:
        wanted = [
            "loss",
            "accuracy" if name in OF_SCORES else "entropy",
            "grad_norm",
            *(["learning_rate"] if name in STEPPING else []),
        ]
        assert ("learning_rate" in metrics) == (name in STEPPING)
        if method.source.samples:
            wanted += ["reward", "length", "truncated", "zero_variance_groups", "kl"]
        if name in ONLINE:
            wanted += ["pairs", "unpaired_groups", "reward_gap"]
        if name in OF_PAIRS:
            wanted += ["accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_length", "rejected_length"]
        if isinstance(method.source, Comparisons):
            wanted += ["margin", "reward", "chosen_reward", "rejected_reward", "chosen_length", "rejected_length"]
        if isinstance(method.source, Steps):
            wanted += ["probability", "labeled_steps", "length"]
        if isinstance(method.source, Labels):
            wanted += ["desirable_reward", "undesirable_reward", "length", "desirable_share"]
        assert all(math.isfinite(metrics[key]) for key in wanted), metrics
        assert metrics["phase"] == name and metrics["grad_norm"] > 0
        assert not any(math.isinf(value) for value in metrics.values() if not isinstance(value, str))
    assert sorted(run.evaluations) == [0, 2]
    assert run.evaluations[2].responses == (0 if name in OF_SCORES else 3), "a model that scores writes nothing"
    of_pairs = [item for item in run.evaluations[2].items if item.category == "preferences"]
    compared = isinstance(method.source, Preferences | Comparisons)
    assert [item.graded for item in of_pairs] == ([3, 3, 3] if compared else [])
    of_steps = [item.item for item in run.evaluations[2].items if item.category == "steps"]
    assert len(of_steps) == (3 if isinstance(method.source, Steps) else 0)
    of_labels = [item for item in run.evaluations[2].items if item.category == "labels"]
    assert [item.graded for item in of_labels] == ([6, 6, 6, 6] if isinstance(method.source, Labels) else [])

    assert yaml.safe_load((run.folder / "config.yaml").read_text()) == run.config.model_dump(mode="json")
    drawn = sorted((run.folder / "rollouts").iterdir())
    if method.source.samples:
        assert [path.name for path in drawn] == ["step-000001.jsonl", "step-000002.jsonl"]
        records = lines(drawn[0])
        assert len(records) == 48
        assert {"prompt", "response", "reward", "advantage", "verdicts", "finish"} <= records[0].keys()
        items = load_rubric(run.config.reward.rubric).categories[records[0]["category"]].items
        assert [verdict["item"] for verdict in records[0]["verdicts"]] == [item.id for item in items]
        assert all(("role" in each) == (name in ONLINE) for each in records)
        if name in ONLINE:
            roles = [each["role"] for each in records]
            assert roles.count("chosen") == roles.count("rejected") == run.metrics[0]["pairs"] > 0
            assert run.metrics[0]["margin"] == 0 or name == "online_simpo", "the reference is the start"
    else:
        assert not drawn

    end = weights(run.model)
    fixed = [key for key in start if torch.equal(end[key], start[key])]
    assert fixed == ["model.layers.0.mlp.up_proj.weight"], "the frozen parameter keeps its bits, and no other does"

    kind = AutoModelForSequenceClassification if name in OF_SCORES else AutoModelForCausalLM
    model = kind.from_pretrained(run.model)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    assert all(torch.equal(value, end[key]) for key, value in model.state_dict().items() if key in end)
    assert tokenizer.eos_token_id is not None
    words = "Answer: 1 + 2"
    assert tokenizer.decode(tokenizer(words)["input_ids"]).count(" ") == words.count(" "), "the same tokenizer again"


def faults(method):
    """Faults in the texts of a method. ``Method`` itself refuses a name, an equation or options with a fault."""
    sentence = re.fullmatch(r"[A-Z][^.]*\w.*\.", method.summary) and len(method.summary.split()) > 3
    checks = {
        "summary: a sentence of at most 120 characters": sentence and len(method.summary) <= 120,
        "equation: left = right": re.search(r"\w[^=]*=\s*\S*\w", method.equation),
        "paper: an arXiv number or a year": re.search(r"arXiv \d{4}\.\d{5}|\b(19|20)\d\d\b", method.paper),
    }
    return [fault for fault, right in checks.items() if not right]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("summary", ("", " ", ".", "x", "Short.", "no capital in the front.", "It has no end", "Far too long. " * 20)),
        ("equation", ("", " ", "=", "L =", "= L", "the loss")),
        ("paper", ("", " ", "a paper", "arXiv", "2402.03300")),
    ],
)
def test_a_fault_in_a_text_is_found(field, values):
    assert not faults(ALGORITHMS["grpo"])
    for value in values:
        changed = replace(ALGORITHMS["grpo"], **{field: value})
        assert [fault.split(":")[0] for fault in faults(changed)] == [field], value


@pytest.mark.parametrize("name", METHODS)
def test_every_row_says_what_it_is(name):
    method = ALGORITHMS[name]
    assert method.name == name
    assert not faults(method)
    assert [family for family, methods in FAMILIES.items() if method in methods]
    assert demo_config(name).is_file(), f"write configs/demo/{method.page}.yaml"
    assert isinstance(load_config(from_file(demo_config(name), name)), Config)
    for function in method.functions:
        assert inspect.getdoc(inspect.unwrap(function.function)), f"{function.name} has no docstring"


@pytest.mark.parametrize("name", METHODS)
def test_every_option_has_a_type_and_a_default_of_it(name):
    method = ALGORITHMS[name]
    available = method_options(method)
    of_tokens = {"reduction", "epochs", "minibatches"}
    if name not in OF_TOKENS:
        assert available.keys().isdisjoint(of_tokens)
    else:
        assert available.keys() & of_tokens == (of_tokens if name in DESCENDING else {"reduction"})
    for option, (kind, default) in available.items():
        assert default is not inspect.Parameter.empty, option
        choices = get_args(kind)
        if choices and all(isinstance(choice, str) for choice in choices):
            assert default in choices, option
        else:
            assert isinstance(default, int | float | str), option
    assert resolve_options(method, {}) == {option: default for option, (_, default) in available.items()}


@pytest.mark.parametrize("name", OF_TOKENS)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reductoin": "token"}, "unknown key 'reductoin'; did you mean 'reduction'?"),
        ({"reduction": "tokens"}, "reduction: Input should be 'token', 'sequence' or 'fixed_length'"),
    ],
)
def test_every_row_refuses_options_that_are_none(name, given, message):
    with pytest.raises(ValueError) as refusal:
        resolve_options(ALGORITHMS[name], given)
    assert str(refusal.value).startswith(f"options of {name}: ") and message in str(refusal.value)


@pytest.mark.parametrize("name", [*OF_PAIRS, *OF_LABELS, *OF_SCORES])
@pytest.mark.parametrize("option", ["reduction", "epochs"])
def test_a_method_without_tokens_has_no_options_of_tokens(name, option):
    with pytest.raises(ValueError, match=f"options of {name}: unknown key '{option}'"):
        resolve_options(ALGORITHMS[name], {option: "token"})


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
    with pytest.raises(ValueError) as refusal:
        resolve_options(ALGORITHMS[name], given)
    assert str(refusal.value).startswith(f"options of {name}: ") and message in str(refusal.value)


def plain(kind):
    """A type without the bounds on it."""
    return kind.__origin__ if hasattr(kind, "__metadata__") else kind


def numeric(method):
    """The types of the method's options that are numbers."""
    return {key: kind for key, (kind, _) in method_options(method).items() if plain(kind) in (int, float)}


UNBOUNDED = {"threshold": "a reward, of any scale", "alpha": "f_dpo's: every divergence but 1 has one"}

PREFERENCE_NAMES = set(OF_PAIRS)

OUT_OF_RANGE = {
    **dict.fromkeys(("clip_low", "ring_low", "tail_weight", "decay", "lam"), (-0.01, 1.01)),
    **dict.fromkeys(("clip_high", "ring_high", "odds_weight", "nll_weight", "fall_weight", "length_weight"), (-0.01,)),
    **dict.fromkeys(("power", "offset_weight", "reward_scale", "gamma", "damping", "min_gap", "kl_target"), (-0.01,)),
    **dict.fromkeys(("kl", "entropy", "advantage_entropy", "pull", "sft", "centering", "value_coefficient"), (-0.01,)),
    **dict.fromkeys(("overlong_buffer", "extra_draws", "backtracks", "value_warmup"), (-1, 0.5)),
    **dict.fromkeys(("keep", "epochs", "minibatches", "cg_iterations"), (0, 1.5)),
    **dict.fromkeys(("cap", "temperature", "modulation", "kl_horizon"), (0.0, -1.0)),
    **dict.fromkeys(("step_kl_limit", "kl_in_reward", "clip_value", "value_learning_rate"), (-0.01,)),
    **dict.fromkeys(("neftune", "beta_slope", "kl_weight", "desirable_weight", "undesirable_weight"), (-0.01,)),
    **dict.fromkeys((name for name in method_options(ALGORITHMS["mixture"]) if name in PREFERENCE_NAMES), (-0.01,)),
    "weight_limit": (0.0, -1.0),
    "reference_mix": (0.0, 1.01),
    "reference_every": (0, 1.5),
    "shrink": (0.0, 1.0),
    "label_smoothing": (-0.01, 0.51),
    **dict.fromkeys(("beta", "delta"), (-0.01,)),
}
"""Of each option what is just beyond its bounds. Where one method's are narrower: test_bounds_that_differ_by_row."""

IN_RANGE = {
    **dict.fromkeys(("clip_low", "ring_low", "tail_weight"), (0.0, 1.0)),
    **dict.fromkeys(("clip_high", "ring_high", "kl", "entropy", "advantage_entropy", "pull", "sft"), (0.0, 9.0)),
    **dict.fromkeys(("keep", "epochs", "minibatches"), (1, 5)),
    "overlong_buffer": (0,),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_number_has_bounds_and_what_is_beyond_them_is_refused(name):
    method = ALGORITHMS[name]
    for option in numeric(method).keys() - UNBOUNDED.keys():
        assert option in OUT_OF_RANGE, (
            f"add {option!r} to OUT_OF_RANGE with numbers just beyond its bounds, or to UNBOUNDED if it needs no bounds"
        )
        for value in (*OUT_OF_RANGE[option], math.nan, math.inf):
            with pytest.raises(ValueError) as refusal:
                resolve_options(method, {option: value})
            assert str(refusal.value).startswith(f"options of {name}: {option}: Input should be "), value
            assert "\n" not in str(refusal.value)
        for value in IN_RANGE.get(option, ()):
            assert resolve_options(method, {option: value})[option] == value


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("cdpo", {"label_smoothing": 0.5}, {"label_smoothing": 0.6}),
        ("robust_dpo", {"label_smoothing": 0.0}, {"label_smoothing": 0.5}),
        ("exo", {"label_smoothing": 0.4}, {"label_smoothing": 0.0}),
        ("exo", {"label_smoothing": 1e-6}, {"label_smoothing": 0.5}),
        ("trpo", {"delta": 1e-6}, {"delta": 0.0}),
        ("slic", {"delta": 0.0}, {"delta": -1.0}),
        ("asymre", {"beta": 0.0}, {"beta": -0.1}),
        *[(name, {"beta": 1e-6}, {"beta": 0.0}) for name in OF_PAIRS if "beta" in method_options(ALGORITHMS[name])],
        ("f_dpo", {"alpha": -3.0}, {"alpha": math.inf}),
        ("rejection_sampling", {"threshold": -3.0}, {"threshold": math.nan}),
    ],
)
def test_bounds_that_differ_by_row(name, right, wrong):
    assert resolve_options(ALGORITHMS[name], right).items() >= right.items()
    with pytest.raises(ValueError, match=f"options of {name}: {next(iter(wrong))}: Input should be "):
        resolve_options(ALGORITHMS[name], wrong)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_set_reaches_the_functions(name):
    method = ALGORITHMS[name]
    numbers = {key: 0.125 for key, kind in numeric(method).items() if plain(kind) is float}
    numbers = {key: value for key, value in numbers.items() if key not in inspect.signature(method.update).parameters}
    more = {"epochs": 3} if name in DESCENDING else {}
    reduction = {"reduction": "fixed_length"} if name in OF_TOKENS else {}
    chosen = resolve_options(method, {**numbers, **more, **reduction})
    goal = build_objective(method, chosen)
    assert goal.reduction == reduction.get("reduction")
    assert len(goal.terms) == len(method.terms), "every penalty is switched on"
    for term, of_term in zip(goal.terms, method.terms, strict=True):
        assert term.coefficient == (0.125 if of_term.option else of_term.coefficient)
        assert not term.options.keys() & set(TOKEN_FIELDS)
        own = {key: value for key, value in chosen.items() if key in inspect.signature(term.function).parameters}
        assert term.options == {key: value for key, value in own.items() if key not in TOKEN_FIELDS}
    defaults = {
        p.name: p.default for p in inspect.signature(method.update).parameters.values() if p.default is not p.empty
    }
    assert method.update_function.keywords(chosen) == {**defaults, **more}


@pytest.mark.parametrize("name", METHODS)
def test_a_penalty_without_a_coefficient_is_not_computed(name):
    method = ALGORITHMS[name]
    own = [term.function for term in method.terms if term.coefficient]
    assert [term.function for term in build_objective(method, resolve_options(method, {})).terms] == own
    off = {term.option: 0.0 for term in method.terms if term.option}
    if all(term.option for term in method.terms):
        with pytest.raises(ValueError, match=f"{name}: every loss has coefficient 0, so there is nothing to learn"):
            build_objective(method, resolve_options(method, off))
        return
    terms = build_objective(method, resolve_options(method, off)).terms
    assert [term.function for term in terms] == [method.terms[0].function]


def test_an_option_named_like_a_field_is_not_given_in_the_field_s_place():
    """The coefficient ``entropy`` is no argument of ``entropy_bonus(entropy)``."""
    method = ALGORITHMS["grpo"]
    (bonus,) = [
        t
        for t in build_objective(method, resolve_options(method, {"entropy": 0.5})).terms
        if t.parameters == ("entropy",)
    ]
    assert (bonus.coefficient, dict(bonus.options)) == (0.5, {})


def test_a_row_s_own_default_takes_the_place_of_its_function_s():
    method = ALGORITHMS["dapo"]
    assert inspect.signature(method.terms[0].function).parameters["clip_high"].default == 0.2
    assert method_options(method)["clip_high"] == (NonNegative, 0.28)
    assert build_objective(method, resolve_options(method, {})).terms[0].options == {"clip_low": 0.2, "clip_high": 0.28}
    assert build_objective(method, resolve_options(method, {"clip_high": 0.5})).terms[0].options["clip_high"] == 0.5
    assert method_options(ALGORITHMS["grpo"])["clip_high"] == (NonNegative, 0.2), "another method of the same function"


@pytest.mark.parametrize("name", [name for name in METHODS if ALGORITHMS[name].defaults])
def test_a_default_that_changes_nothing_is_not_written(name):
    method = ALGORITHMS[name]
    own = method_options(replace(method, defaults={}))
    assert all(own[option][1] != default for option, default in method.defaults.items())


def test_no_two_rows_are_the_same():
    def parts(method):
        return method.source, method.terms, method.reduction, tuple(method.defaults.items()), method.update

    methods = list(ALGORITHMS.values())
    assert all(parts(a) != parts(b) for i, a in enumerate(methods) for b in methods[:i])


def test_an_online_form_differs_from_its_method_in_where_its_pairs_come_from():
    offline = [method for method in ALGORITHMS.values() if isinstance(method.source, Preferences)]
    assert [ALGORITHMS[name].online_of for name in ONLINE] == [method.name for method in offline]
    for method in offline:
        form = ALGORITHMS[f"online_{method.name}"]
        own = {key: getattr(method, key) for key in ("name", "summary", "equation", "paper", "source", "online_of")}
        assert replace(form, **own) == method
        assert method_options(form).items() >= method_options(method).items()
        assert method_options(form).keys() - method_options(method).keys() == {"pairing", "min_gap"}
        assert method.equation in form.equation and method.paper in form.paper and f" {method.name} " in form.summary
        assert (method.page, form.page) == (method.name, "online")
    with pytest.raises(ValueError, match="sft does not learn from pairs of data"):
        online_form(ALGORITHMS["sft"])


def test_a_coefficient_without_an_option_stays():
    method = replace(ALGORITHMS["sft"], terms=(LossTerm(ALGORITHMS["sft"].terms[0].function, 0.75),))
    assert build_objective(method, resolve_options(method, {})).terms[0].coefficient == 0.75


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
