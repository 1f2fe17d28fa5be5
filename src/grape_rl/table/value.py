"""Methods with a value function, which gives each token its own advantage."""

from grape_rl.maths.advantage import gae
from grape_rl.maths.grape import unweighted
from grape_rl.maths.penalty import kl_scale
from grape_rl.maths.reward import kl_penalized
from grape_rl.maths.surrogate import clipped
from grape_rl.maths.value import value_loss, whitened
from grape_rl.methods import LossTerm, Method
from grape_rl.sources.responses import Memory, Responses
from grape_rl.table.penalties import PENALTIES
from grape_rl.training.value import ValueFunction

VALUE_METHODS = (
    Method(
        name="ppo",
        summary="Full PPO: GAE with a value function, clipped policy and value losses, and a KL penalty in the reward.",
        equation="r_t = 1[t=T] R − β(log π_old − log π_ref);  δ_t = r_t + γV_{t+1} − V_t;  A_t = Σ_l (γλ)^l δ_{t+l};  "
        "G = A + V_old;  L = mean_t [−min(ρ_t A, clip(ρ_t, 1−ε_low, 1+ε_high) A) + c L_V];  "
        "L_V = ½ max((V − G)², (clip(V, V_old ± ε_V) − G)²)",
        paper="arXiv 2509.04501, PPO; Schulman et al., arXiv 1707.06347; GAE, 1506.02438; InstructGPT, 2203.02155",
        source=Responses(
            gae,
            unweighted,
            token_reward=kl_penalized,
            rescaled=whitened,
            value=ValueFunction,
            memory=(Memory(kl_scale, 1.0),),
        ),
        terms=(LossTerm(clipped), LossTerm(value_loss, 0.1, "value_coefficient"), *PENALTIES),
        reduction="token",
        defaults={"kl_in_reward": 0.05},
    ),
)
