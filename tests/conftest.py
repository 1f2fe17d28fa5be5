"""What tests share: a tiny model with sharp choices, and its tokenizer. Nothing here reaches the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is first imported

import hypothesis
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from grape_rl.model.load import prepare_model
from grape_rl.model.scratch import character_tokenizer, random_llama

hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.register_profile("fuzz", max_examples=1000, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "seeded"))  # make fuzz draws at random

torch.set_num_threads(1)  # tensors of a few hundred numbers: threads cost more than they give


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character: digits, lower-case letters, and what arithmetic and sentences need."""
    return character_tokenizer(["0123456789+-*=?:,. abcdefghijklmnopqrstuvwxyz\n"])


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A new two-layer policy for each test, so that training it spoils nothing: float32, ``.double()`` to be exact.

    Fresh weights make all tokens nearly alike, where a mistake moves nothing: these matrices are twenty times larger.
    """
    built = random_llama(tokenizer, hidden=16, layers=2, heads=2, context=128, seed=0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() == 2:
                parameter.mul_(20.0)
    return prepare_model(built, torch.device("cpu"))  # pyright: ignore[reportReturnType]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first, so that the others run beside it."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")
