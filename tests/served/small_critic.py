"""A critic with random weights and a bias to short answers: without it one string would fill the context."""

from pathlib import Path

import torch
from torch import nn

from grape_rl.model.scratch import bpe_tokenizer, random_llama
from grape_rl.reward.critic.judge import Judge
from grape_rl.reward.critic.prompt import judge_messages
from grape_rl.types import Response

TEMPLATE = (
    "{% for m in messages %}{{ '<bos>' + m.role + '\n' + m.content + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bos>assistant\n' }}{% endif %}"
)
CONTEXT = 2048


def saved_critic(folder: Path) -> Path:
    """Save a model that can write JSON, and its tokenizer, in ``folder``."""
    asked = judge_messages(
        [Judge(criterion="It is right.")], Response("What is it?", "It is so.", {}, 4, "stop"), "[mark]"
    )
    texts = [message["content"] for message in asked] * 3
    tokenizer = bpe_tokenizer([*texts, "yes", "no", "yes no"], 500)
    tokenizer.chat_template = TEMPLATE
    model = random_llama(tokenizer, hidden=64, layers=2, heads=2, context=CONTEXT, seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(8.0)
        # The first hidden dimension is the same everywhere: what the head makes of it is each token's own bias.
        model.get_input_embeddings().weight[:, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        model.config.tie_word_embeddings = False
        head = nn.Parameter(model.get_input_embeddings().weight.clone())
        head[:, 0] = 0.0
        leans = {'"': 14.0, "yes": 16.0, "no": 18.0, "}": 16.0, ",": 16.0, ":": 16.0} | dict.fromkeys("0123456789", 8.0)
        for text, lean in leans.items():
            (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
            head[token, 0] = lean
        model.lm_head.weight = head
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
