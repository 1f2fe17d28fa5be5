"""Checks of a method when it is built: each error is one line with the method, the function and the parameter."""

from dataclasses import replace
from typing import Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from grape_rl import ALGORITHMS
from grape_rl.maths.bounds import Positive, UnitInterval
from grape_rl.method_checks import base_type, check_reduction, intersection
from grape_rl.methods import LossTerm, method_options, resolve_options
from grape_rl.training.pairs import pair_gradient
from grape_rl.training.update import gradient

GRPO, DPO = ALGORITHMS["grpo"], ALGORITHMS["dpo"]


def loss(logp, advantage, slope: Positive = 1.0):
    """A loss with one option."""


def other(logp, slope: Positive = 1.0, power: int = 2):
    """A loss that shares an option with it."""


def built(*functions, **changes):
    """GRPO under the name "mine", with these functions as the terms of its loss."""
    terms = tuple(LossTerm(function) for function in functions) or GRPO.terms
    return replace(GRPO, **{"name": "mine", "terms": terms, **changes})


NEITHER = "is not an input, and has no default as an option"


def typo(logp, advantge):
    """An input by a wrong name."""


def unknown(logp, zzz):
    """An input by no name."""


def untyped(logp, slope=0.5):
    """An option without a type."""


def below(logp, slope: UnitInterval = -0.5):
    """An option whose default is out of bounds."""


def tensor(logp, slope: object = None):
    """An option that no user can set."""


def chosen(logp, mode: Literal["a", "b"] = "c"):
    """An option whose default is not one of its choices."""


def variable(logp, **fields):
    """Inputs without names."""


def text(logp, slope: float = "0.5"):
    """An option whose default is text that looks like a number."""


def missing(logp, slope: float = float("nan")):
    """An option whose default is no number."""


def private(logp, _slope: float = 1.0):
    """An option with a name that a pydantic model cannot have."""


def reserved(logp, model_config: float = 1.0):
    """An option with a name that a pydantic model has for itself."""


def unresolved(logp, slope: "Nowhere" = 0.5):  # noqa: F821
    """An option of a type that does not exist."""


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (
            typo,
            "typo: parameter 'advantge' is not an input, and has no default as an option; did you mean 'advantage'?",
        ),
        (
            unknown,
            "unknown: parameter 'zzz' is not an input, and has no default as an option; known: advantage, behavior",
        ),
        (untyped, "untyped: option 'slope' has no type: write slope: float = 0.5, or another"),
        (below, "below: option 'slope' has the default -0.5: Input should be greater than or equal to 0"),
        (chosen, "chosen: option 'mode' has the default 'c': Input should be 'a' or 'b'"),
        (tensor, "tensor: option 'slope' has the type object, but should be bool, int, float, str or a Literal"),
        (text, "text: option 'slope' has the default '0.5': Input should be a valid number"),
        (missing, "missing: option 'slope' has the default nan: should be a number"),
        (private, "private: option '_slope': a name that options cannot have: rename it"),
        (reserved, "reserved: option 'model_config': a name that options cannot have: rename it"),
        (variable, "variable: parameter '**fields': list each input and option by name"),
        (unresolved, "unresolved: its annotations cannot be read: NameError: name 'Nowhere' is not defined"),
        (lambda logp: logp, "<lambda>: should be a function defined by def, or a class, so that it can be explained"),
    ],
)
def test_a_function_with_a_fault_is_refused(function, error):
    with pytest.raises(ValueError) as refusal:
        built(function)
    assert str(refusal.value).startswith(f"mine: {error}") and "\n" not in str(refusal.value)


def test_every_function_is_checked():
    def advantage(reward, gruop):
        """An advantage with a typo."""

    def update(model, experiences):
        """An update with a typo."""

    with pytest.raises(ValueError, match=r"mine: advantage: parameter 'gruop' is not an input.*did you mean 'group'\?"):
        built(source=replace(GRPO.source, advantage=advantage))
    with pytest.raises(ValueError, match=r"mine: update: parameter 'experiences' is not .*did you mean 'experience'\?"):
        built(update=update)


def test_an_input_of_a_value_function_is_unknown_without_one():
    with pytest.raises(ValueError, match="mine: value_loss: parameter 'value' is not an input"):
        built(*(term.function for term in ALGORITHMS["ppo"].terms[:2]))


def test_an_advantage_reads_only_what_its_source_computes():
    def valued(reward, value):
        """An advantage that reads a value."""

    def penalized(token_reward):
        """An advantage that reads rewards of tokens."""

    for advantage, name in ((valued, "value"), (penalized, "token_reward")):
        with pytest.raises(ValueError, match=f"mine: {advantage.__name__}: parameter '{name}' is not an input"):
            built(source=replace(GRPO.source, advantage=advantage))
        assert built(source=replace(ALGORITHMS["ppo"].source, advantage=advantage, rescaled=None))


def test_each_loss_is_there_once_and_gets_its_inputs():
    def optional(logp, advantage=None):
        """A loss with an input that is never passed."""

    with pytest.raises(ValueError, match="mine: optional: input 'advantage' has a default, so it would never be"):
        built(optional)
    with pytest.raises(ValueError, match="mine: terms: two losses have the name loss: rename one, or add both"):
        built(terms=(LossTerm(loss), LossTerm(loss, 0.5, "again")))
    with pytest.raises(ValueError, match="mine: terms: there is no loss"):
        built(terms=())
    with pytest.raises(
        ValueError, match=r"mine: loss: coefficient 'weight' has the default -1\.0: should be 0 or more"
    ):
        built(terms=(LossTerm(loss, -1.0, "weight"),))
    assert built(terms=(LossTerm(loss, -1.0),)), "a fixed coefficient may be negative"


def with_default(logp, slope: Positive = 2.0):
    """A shared option with another default."""


def with_type(logp, slope: int = 1):
    """A shared option of another type."""


def with_bounds(logp, slope: UnitInterval = 1.0):
    """A shared option with other bounds."""


def test_functions_that_share_an_option_agree_on_it():
    assert method_options(built(loss, other))["slope"] == (Positive, 1.0)
    with pytest.raises(ValueError) as refusal:
        built(loss, with_default)
    assert str(refusal.value) == (
        "mine: with_default: option 'slope' has the default 2.0, but in loss it is 1.0: set it in the method's "
        "defaults, or rename one"
    )
    assert method_options(built(loss, with_default, defaults={"slope": 3.0}))["slope"] == (Positive, 3.0)
    with pytest.raises(ValueError, match="mine: with_type: option 'slope' has another type than in loss: rename one"):
        built(loss, with_type, defaults={"slope": 3.0})


@pytest.mark.parametrize("functions", [(loss, with_bounds), (with_bounds, loss)])
def test_a_shared_option_has_the_bounds_of_every_function(functions):
    method = built(*functions)
    assert resolve_options(method, {"slope": 0.5})["slope"] == 0.5
    for outside in (0.0, 1.5):
        with pytest.raises(ValueError, match="options of mine: slope: Input should be"):
            resolve_options(method, {"slope": outside})


def test_the_intersection_of_types():
    kind = TypeAdapter(intersection(UnitInterval, Positive))
    assert kind.validate_python(1.0) == 1.0
    for outside in (0.0, 1.1):
        with pytest.raises(ValidationError):
            kind.validate_python(outside)
    assert intersection(UnitInterval, UnitInterval) is UnitInterval
    assert base_type(intersection(UnitInterval, Positive)) is float
    assert intersection(int, int) is int


def test_an_option_is_not_a_coefficient_as_well():
    def reduced(logp, reduction: str = "token"):
        """A loss with an option that every loss per token has."""

    term = LossTerm(with_bounds, 1.0, "weight")

    def weighted(logp, weight: Positive = 1.0):
        """A loss with an option that is a coefficient."""

    with pytest.raises(ValueError, match="option 'weight' is also the coefficient of with_bounds: rename"):
        built(terms=(term, LossTerm(weighted)))
    with pytest.raises(ValueError, match="option 'reduction' is also the weighting of tokens: rename one"):
        built(reduced)
    with pytest.raises(ValueError, match=r"mine: other: coefficient 'weight' has two defaults, 1\.0 and 0\.5"):
        built(terms=(term, LossTerm(other, 0.5, "weight")))


@pytest.mark.parametrize(
    ("defaults", "error"),
    [
        ({"clip_hi": 0.3}, "there is no option 'clip_hi'; did you mean 'clip_high'?"),
        ({"clip_high": -1.0}, "option 'clip_high' has the default -1.0: Input should be greater than or equal to 0"),
        ({"scale": "grp"}, "option 'scale' has the default 'grp': Input should be 'group', 'batch' or 'none'"),
    ],
)
def test_the_method_s_own_defaults_are_values_of_its_options(defaults, error):
    with pytest.raises(ValueError) as refusal:
        built(defaults=defaults)
    assert str(refusal.value) == f"mine: defaults: {error}"


def test_text_that_cannot_be_printed_is_refused():
    part = f"L = {'x' * 90}"
    assert built(equation=f"{part};  {part}").equation
    with pytest.raises(ValueError) as refusal:
        built(equation=f"A = 1;  {part}x")
    assert str(refusal.value) == (
        "mine: equation: a part has 95 characters, but at most 94 fit on a line: shorten it, or split it by ';  ' "
        f"(a semicolon and two spaces): {part}x"
    )
    for unprintable in ("L = x\n  + y", "L =\tx", "L = \a"):
        with pytest.raises(ValueError, match="mine: equation: a part should be one line of printable characters: "):
            built(equation=unprintable)
    with pytest.raises(ValueError, match="mine: derivation: line 2 has 101 characters, but at most 100 fit"):
        built(derivation=f"J = E[R]\n{'x' * 101}")
    with pytest.raises(ValueError, match=r"'my method': a method's name should be letters, digits and underscores"):
        built(name="my method")


def test_the_loss_is_reduced_as_its_source_asks():
    with pytest.raises(ValueError, match="mine: reduction: a loss per token needs one: token, sequence or "):
        built(reduction=None)
    with pytest.raises(ValueError, match="mine: reduction: should be None: the loss has no tokens"):
        replace(DPO, name="mine", reduction="token")
    with pytest.raises(ValueError, match="mine: reduction: unknown 'tokens'; did you mean 'token'"):
        check_reduction("mine", "tokens", GRPO.source.loss_fields)


def test_the_update_fits_the_source():
    assert replace(DPO, name="mine", update=pair_gradient)
    with pytest.raises(ValueError, match="mine: gradient: updates by TokenExperience, which the source"):
        replace(DPO, name="mine", update=gradient)
    with pytest.raises(ValueError, match="mine: pair_gradient: updates by PairExperience, which the source does"):
        built(update=pair_gradient)


def test_every_method_of_the_table_passes():
    for method in ALGORITHMS.values():
        assert replace(method) == method


def test_bounds_of_a_mixture_s_shared_option():
    """cdpo allows a label_smoothing of 0.5; robust_dpo divides by 1 − 2 label_smoothing, so the mixture does not."""
    kind, default = method_options(ALGORITHMS["mixture"])["label_smoothing"]
    assert default == 0.1 and base_type(kind) is float
    with pytest.raises(ValueError, match=r"label_smoothing: Input should be less than 0\.5"):
        resolve_options(ALGORITHMS["mixture"], {"label_smoothing": 0.5})
    assert method_options(ALGORITHMS["cdpo"])["label_smoothing"][0] != kind
