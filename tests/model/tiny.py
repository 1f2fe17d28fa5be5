"""Tiny models of real architectures with random weights, and reference results from one forward pass per row."""

from collections.abc import Callable

import torch
import transformers as hf
from torch import Tensor

from grape_rl.types import Sequences

VOCABULARY = 23
SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
WINDOW = dict(sliding_window=4)  # shorter than the tests' prompts and responses
GEMMA = dict(**SHAPE, **WINDOW, head_dim=4, query_pre_attn_scalar=4)
OWN = dict(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
HALVES = ["sliding_attention", "full_attention"]

MODELS: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SHAPE)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SHAPE, head_dim=4)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE)),
    "mistral, window 4": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SHAPE, **WINDOW)),
    "gemma2, soft caps": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GEMMA, final_logit_softcapping=3.0)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GEMMA, layer_types=HALVES)),
    "gpt2, absolute": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**OWN)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**SHAPE)),
    "granite, scaled": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**SHAPE, logits_scaling=3.0)),
    "cohere, scaled": lambda: hf.CohereForCausalLM(hf.CohereConfig(**SHAPE, logit_scale=0.3)),
}
"""Rotary and absolute positions, sliding windows, soft caps, scaled logits, tied and untied heads."""

RECURRENT: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "mamba": lambda: hf.MambaForCausalLM(
        hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4)
    ),
    "lfm2": lambda: hf.Lfm2ForCausalLM(hf.Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"])),
}
"""Their cache is a state, not keys and values per position."""


def sharp(build: Callable[[], hf.PreTrainedModel], dtype: torch.dtype = torch.float64) -> hf.PreTrainedModel:
    """The model with fixed random weights, large enough for distributions far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(15.0)
    return model.to(dtype).eval()


def exactness(name: str) -> tuple[torch.dtype, float]:
    """The precision to run a model in, and the tolerance (nats) between two computations of one number in it.

    In float64: a few roundings of 1e-16 on logits of a few tens, far below 1e-10. Gemma 2 computes its softmax in
    float32 for weights of any type: roundings of 1e-7, which stay below 2e-5.
    """
    return (torch.float32, 2e-5) if name.startswith("gemma2") else (torch.float64, 1e-10)


def alone(model: hf.PreTrainedModel, sequences: Sequences, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of each masked token, by one unpadded forward pass of the whole model per row."""
    logp, entropy = [], []
    for tokens, mask, group in zip(sequences.tokens, sequences.mask, sequences.group.tolist(), strict=True):
        prompt = sequences.prompts[group]
        ids = torch.cat([prompt, tokens])
        before = model(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        logprobs = (before / temperature).log_softmax(dim=-1)
        rows = torch.arange(len(tokens))
        logp.append(torch.where(mask, logprobs[rows, tokens], 0.0))
        entropy.append(torch.where(mask, torch.distributions.Categorical(logits=logprobs).entropy(), 0.0))
    return torch.stack(logp), torch.stack(entropy)


def sequences(prompt_lengths: list[int], response_lengths: list[list[int]], seed: int = 1) -> Sequences:
    """Random tokens: a prompt of each length, with responses of the lengths in its list, padded with random tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = [(g, n) for g, lengths in enumerate(response_lengths) for n in lengths]
    width = max(n for _, n in rows)
    return Sequences(
        tuple(torch.randint(3, VOCABULARY, (n,), generator=generator) for n in prompt_lengths),
        torch.randint(3, VOCABULARY, (len(rows), width), generator=generator),
        torch.arange(width) < torch.tensor([n for _, n in rows])[:, None],
        torch.tensor([g for g, _ in rows]),
    )


def apart(given: Sequences) -> Sequences:
    """The same rows, each with its own copy of the prompt."""
    prompts = tuple(given.prompts[g] for g in given.group.tolist())
    return Sequences(prompts, given.tokens, given.mask, torch.arange(len(prompts)))


def gradient(model: hf.PreTrainedModel, loss: Tensor) -> Tensor:
    """The gradient of the loss by all parameters, as one vector."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])
