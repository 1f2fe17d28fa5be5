"""A critic in this process: a causal model of transformers that answers by its labels' probabilities."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from grape_rl.data.chat import prompt_tokens
from grape_rl.model.load import load
from grape_rl.model.logprobs import logprobs
from grape_rl.reward.critic.reply import Reply
from grape_rl.types import Sequences


class LocalCritic:
    """Scores each label as the whole answer: Σ_t log π(label_t | conversation, label_<t), its end token included.

    One forward pass a call, in which the labels share the conversation. It reasons not, so it answers items whose
    confidence is of mode ``logprob`` only.
    """

    def __init__(self, model: str, device: torch.device) -> None:
        self.name = f"local {model}"
        self._model, self._tokenizer = load(model, device)

    async def reply(
        self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any], labels: Sequence[str], seed: int
    ) -> Reply:
        """The labels' log-probs."""
        if not labels:
            return Reply(
                "a local critic has no words: give the item 'confidence: {mode: logprob}'", status="infrastructure"
            )
        template = getattr(self._tokenizer, "chat_template", None)
        asked: Any = list(messages) if template else "\n\n".join(m["content"] for m in messages) + "\n\nAnswer: "
        prompt = prompt_tokens(self._tokenizer, asked)
        end = [self._tokenizer.eos_token_id]
        rows = [self._tokenizer(label, add_special_tokens=False)["input_ids"] + end for label in labels]
        width = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[t < len(row) for t in range(width)] for row in rows])
        with torch.no_grad():
            found = logprobs(self._model, Sequences((prompt,), tokens, mask, torch.zeros(len(rows), dtype=torch.int64)))
        told = dict(zip(labels, found.logp.sum(dim=1).tolist(), strict=True))
        return Reply(max(told, key=lambda name: told[name]), label_logp=told, prompt_tokens=len(prompt))

    async def close(self) -> None:
        """Nothing is held."""
