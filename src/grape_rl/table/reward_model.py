"""The methods that train a model to score what others write: one number a response, or one a step."""

from grape_rl.maths.reward_model import bradley_terry, centered, step_cross_entropy
from grape_rl.methods import LossTerm, Method
from grape_rl.sources.comparisons import Comparisons
from grape_rl.sources.steps import Steps
from grape_rl.training.reward_modeling import comparison_gradient, step_gradient

REWARD_MODEL = (
    Method(
        name="reward_model",
        summary="Learn a score under which the chosen response of each pair beats the rejected one.",
        equation="L = −log σ(r(x,y_w) − r(x,y_l) − m) + c (r(x,y_w) + r(x,y_l))²",
        paper="arXiv 2509.04501, reward model; Bradley–Terry; margin: arXiv 2307.09288; centering: arXiv 2312.09244",
        source=Comparisons(),
        # On by default: the score is used as a number later (a reward, or an item of a rubric), and without the pull
        # where its zero lies is left to chance. At 0.01 it hardly moves a difference.
        terms=(LossTerm(bradley_terry), LossTerm(centered, 0.01, "centering")),
        reduction=None,
        update=comparison_gradient,
    ),
    Method(
        name="process_reward_model",
        summary="Learn which steps of a solution are right, from a label for each step.",
        equation="L = −mean_i [z_i log σ(s_i) + (1−z_i) log σ(−s_i)],  s_i = s_θ(x, y_≤i) at the end of step i",
        paper="process supervision, arXiv 2211.14275; arXiv 2305.20050",
        source=Steps(),
        terms=(LossTerm(step_cross_entropy),),
        reduction=None,
        update=step_gradient,
    ),
)
