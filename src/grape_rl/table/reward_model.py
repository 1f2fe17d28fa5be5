"""Methods that train reward models: one score per response, or one per step."""

from grape_rl.maths.reward_model import bradley_terry, score_centering, step_cross_entropy
from grape_rl.methods import LossTerm, Method
from grape_rl.sources.comparisons import Comparisons
from grape_rl.sources.steps import Steps
from grape_rl.training.reward_modeling import comparison_gradient, step_gradient

REWARD_MODEL_METHODS = (
    Method(
        name="reward_model",
        summary="A Bradley–Terry reward model that scores the chosen response of each pair above the rejected one.",
        equation="L = −log σ(r(x,y_w) − r(x,y_l) − m) + c (r(x,y_w) + r(x,y_l))²",
        paper="arXiv 2509.04501, reward model; Bradley–Terry; margin: arXiv 2307.09288; centering: arXiv 2312.09244",
        source=Comparisons(),
        # Centering is on by default: the score is later used as a number (a reward, or a rubric item), and without
        # centering its zero is arbitrary. A weight of 0.01 hardly changes a difference of scores.
        terms=(LossTerm(bradley_terry), LossTerm(score_centering, 0.01, "centering")),
        reduction=None,
        update=comparison_gradient,
    ),
    Method(
        name="process_reward_model",
        summary="A process reward model that classifies each step of a solution as right or wrong.",
        equation="L = −mean_i [z_i log σ(s_i) + (1−z_i) log σ(−s_i)],  s_i = s_θ(x, y_≤i) at the end of step i",
        paper="Process supervision, arXiv 2211.14275; arXiv 2305.20050",
        source=Steps(),
        terms=(LossTerm(step_cross_entropy),),
        reduction=None,
        update=step_gradient,
    ),
)
