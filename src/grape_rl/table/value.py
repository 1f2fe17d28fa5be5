"""Methods with a value function: what is to come is foreseen before each token, and credited where it changes."""

from grape_rl.maths.advantage import gae
from grape_rl.maths.grape import unweighted
from grape_rl.maths.penalty import kl_scale
from grape_rl.maths.reward import kl_penalized
from grape_rl.maths.surrogate import clipped
from grape_rl.maths.value import value_loss, whitened
from grape_rl.methods import LossTerm, Memory, Method, Responses
from grape_rl.table.penalties import PENALTIES
from grape_rl.training.value import ValueFunctionOptions

VALUE = (
    Method(
        name="ppo",
        summary="PPO whole: a value function, an advantage for each token, both losses clipped, the KL in the reward.",
        equation="r_t = 1[t=T] R − β(log π_old − log π_ref);  δ_t = r_t + γV_{t+1} − V_t;  A_t = Σ_l (γλ)^l δ_{t+l};  "
        "G = A + V_old;  L = mean_t [−min(ρ_t A, clip(ρ_t, 1−ε_low, 1+ε_high) A) "
        "+ c · ½ max((V − G)², (clip(V, V_old ± ε_V) − G)²)]",
        paper="arXiv 2509.04501, PPO; Schulman et al., arXiv 1707.06347; GAE, 1506.02438; InstructGPT, 2203.02155",
        source=Responses(
            gae,
            unweighted,
            token_reward=kl_penalized,
            rescaled=whitened,
            value=ValueFunctionOptions,
            remembers=(Memory(kl_scale, 1.0),),
        ),
        terms=(LossTerm(clipped), LossTerm(value_loss, 0.1, "value_coefficient"), *PENALTIES),
        reduction="token",
        defaults={"kl_in_reward": 0.05},
    ),
)
