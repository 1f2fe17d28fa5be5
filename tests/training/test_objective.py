"""The objective as a sum: coefficients, weights, what is masked, and what each term is told."""

import pytest
import torch

from grape_rl.training.objective import TOKEN_FIELDS, Objective, Term, example_loss, token_loss
from grape_rl.types import Outputs, ValueBatch

MASK = torch.tensor([[True, True, False], [True, False, False]])


def field(scale):
    return torch.arange(1.0, 7.0).reshape(2, 3) * scale


OUTPUTS = Outputs(logp=field(-1.0), entropy=field(10.0), value=field(0.3))
BATCH = ValueBatch(
    MASK, field(-2.0), field(-3.0), advantage=field(0.5), behavior_value=field(0.1), value_target=field(4.0)
)
WEIGHT = torch.tensor([[0.5, 0.25, 9.0], [0.125, 9.0, 9.0]])


def test_terms_are_summed_with_their_coefficients_over_masked_tokens():
    total, shares = token_loss(
        Objective((Term(first, 2.0), Term(second, -1.0, {"power": 2})), "token"), OUTPUTS, BATCH, WEIGHT
    )
    # first: A · logp at the three tokens; second: entropy to the power of 2
    of_first = 2 * (0.5 * (0.5 * -1) + 0.25 * (1 * -2) + 0.125 * (2 * -4))
    of_second = -(0.5 * 10**2 + 0.25 * 20**2 + 0.125 * 40**2)
    assert total.item() == pytest.approx(of_first + of_second, rel=1e-6)
    assert {name: share.item() for name, share in shares.items()} == pytest.approx(
        {"first": of_first, "second": of_second}
    )


def first(advantage, logp):
    return advantage * logp


def second(entropy, power):
    return entropy**power


def test_a_term_is_told_every_field_by_its_name():
    told = {}

    def curious(logp, entropy, value, mask, behavior_logp, reference_logp, advantage, behavior_value, value_target):
        told.update(locals())
        return logp

    assert Term(curious).parameters == TOKEN_FIELDS
    token_loss(Objective((Term(curious),), "token"), OUTPUTS, BATCH, WEIGHT)
    assert all(told[name] is getattr(OUTPUTS, name) for name in ("logp", "entropy", "value"))
    assert all(told[name] is getattr(BATCH, name) for name in TOKEN_FIELDS if name not in ("logp", "entropy", "value"))


def test_what_is_masked_out_may_be_nan_and_leaves_no_gradient():
    logp = field(-1.0).requires_grad_()

    def broken(logp):
        return (logp / MASK).exp() * 0 + logp + torch.where(MASK, 0.0, torch.nan)

    total, _ = token_loss(Objective((Term(broken),), "token"), Outputs(logp, OUTPUTS.entropy), BATCH, WEIGHT)
    assert total.isfinite()
    plain = Objective((Term(lambda logp: logp),), "token")
    total, _ = token_loss(plain, Outputs(logp, OUTPUTS.entropy), BATCH, WEIGHT)
    total.backward()
    assert torch.equal(logp.grad, WEIGHT * MASK)


@pytest.mark.parametrize("reduced", [lambda x: x.mean(), lambda x: x.sum(dim=-1, keepdim=True)])
def test_a_term_that_is_reduced_already_is_refused(reduced):
    """A mean would be broadcast over the tokens, or divided by the number of pairs a second time."""

    def loss(logp):
        return reduced(logp)

    def of_pairs(chosen_logp, mean_gain):
        return reduced(chosen_logp) + mean_gain

    with pytest.raises(ValueError, match=r"loss: the loss has the shape \[.*\], not \[2, 3\]: one number per token"):
        token_loss(Objective((Term(loss),), "token"), OUTPUTS, BATCH, WEIGHT)
    fields = {"mean_gain": torch.tensor(1.0), "chosen_logp": torch.arange(3.0)}
    with pytest.raises(ValueError, match=r"of_pairs: the loss has the shape \[1?\], not \[3\]: one number per pair"):
        example_loss(Objective((Term(of_pairs),), None), fields, count=6)


def test_no_terms_are_no_loss():
    total, shares = token_loss(Objective((), "token"), OUTPUTS, BATCH, WEIGHT)
    assert total.item() == 0 and shares == {}


def test_an_objective_sees_only_advantage_where_every_term_does():
    one, other = Term(first), Term(second)
    assert Objective((one,), "token").sees_only_advantage
    assert not Objective((one, other), "token").sees_only_advantage
