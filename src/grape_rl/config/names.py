"""Names of settings: the setting that a user probably meant."""

import difflib
from collections.abc import Iterable, Mapping

from grape_rl.config.config import Config
from grape_rl.config.section import settings_of

NAMES_ELSEWHERE: Mapping[str, str] = {
    "lr": "optimizer.learning_rate",
    "batch_size": "prompts_per_step",
    "train_batch_size": "prompts_per_step",
    "per_device_train_batch_size": "prompts_per_step",
    "gradient_accumulation_steps": "tokens_per_microbatch",
    "max_steps": "steps",
    "num_generations": "group_size",
    "rollout_n": "group_size",
    "max_completion_length": "sampling.max_tokens",
    "max_new_tokens": "sampling.max_tokens",
    "max_seq_length": "data.max_length",
    "max_prompt_length": "data.max_length",
    "warmup_steps": "optimizer.warmup",
    "lr_scheduler_type": "optimizer.schedule",
    "bf16": "precision",
    "dtype": "precision",
    "output_dir": "output",
    "save_steps": "checkpoint_every",
    "eval_dataset": "data.held_out",
    "dataset": "data.source",
    "dataset_name": "data.source",
    "train_file": "data.source",
    "reward_funcs": "reward.function",
    "model_name": "model.name",
    "model_name_or_path": "model.name",
    "lora_r": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "num_iterations": "options.epochs",
    "epsilon": "options.clip_low",
    "epsilon_high": "options.clip_high",
    "kl_coef": "options.kl",
}
"""Settings of other libraries, by their names there, and ours that do the same."""


def setting_hint(name: str, options: Iterable[str]) -> str:
    """The end of an error message about an unknown setting: the nearest one by its dotted name.

    ``options`` are the method's options. A setting of the same name in a section comes first, then the name that other
    libraries use, then the most similar name. "" if nothing is near.

    >>> setting_hint("learning_rate", []), setting_hint("beta", ["beta"]), setting_hint("qwertz", [])
    ("; did you mean 'optimizer.learning_rate'?", "; did you mean 'options.beta'?", '')
    """
    dotted = [*(f"options.{option}" for option in options), *(name for name, _ in settings_of(Config))]
    last = {path.rpartition(".")[2]: path for path in reversed(dotted)}
    elsewhere = NAMES_ELSEWHERE.get(name)
    exact = last.get(name) or (elsewhere if elsewhere in dotted else None)
    near = [exact] if exact else [last[key] for key in difflib.get_close_matches(name, last, n=1)]
    return f"; did you mean {near[0]!r}?" if near else ""
