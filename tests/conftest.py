"""Shared fixtures: a tiny model with distributions far from uniform, and its tokenizer. No network access."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is first imported

import hypothesis
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from grape_rl.model.load import prepare_model
from grape_rl.model.scratch import character_tokenizer, random_llama
from grape_rl.training.log import UNDOCUMENTED, Log

hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.register_profile("fuzz", max_examples=1000, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "seeded"))  # make fuzz draws at random

torch.set_num_threads(1)  # tensors of a few hundred numbers: threads cost more than they give


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character: digits, lower-case letters, and punctuation of arithmetic and sentences."""
    return character_tokenizer(["0123456789+-*=?:,. abcdefghijklmnopqrstuvwxyz\n"])


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A new two-layer policy for each test, which may train it. It is float32; use ``.double()`` for exactness.

    With initial weights all tokens are nearly equally likely, so that a mistake would not show. These matrices are
    twenty times larger.
    """
    built = random_llama(tokenizer, hidden=16, layers=2, heads=2, context=128, seed=0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() == 2:
                parameter.mul_(20.0)
    return prepare_model(built, torch.device("cpu"))  # pyright: ignore[reportReturnType]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest test first, in parallel with all others."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.fixture(autouse=True)
def every_logged_metric_is_documented(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail any test whose run logs a metric without an entry in ``METRICS``. Tests of the log itself are exempt."""
    if request.path.name in ("test_log.py", "test_display.py"):
        return
    warn = Log.warn

    def checked(self: Log, key: str, message: str) -> None:
        assert key != UNDOCUMENTED, message
        warn(self, key, message)

    monkeypatch.setattr(Log, "warn", checked)
