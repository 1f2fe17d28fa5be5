"""Data types, recognized by their columns."""

import pytest

from grape_rl.data.types import detect_data_type


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("prompt", "prompt-only"),
        ("prompt answer", "prompt-only"),
        ("prompt completion", "prompt-completion"),
        ("prompt completion label", "unpaired preference"),
        ("prompt chosen rejected", "preference"),
        ("chosen rejected", "preference"),
        ("prompt completions labels", "stepwise supervision"),
        ("messages", "language modeling"),
        ("text", "language modeling"),
        ("prompt chosen", "prompt-only"),
        ("question answer", None),
        ("", None),
    ],
)
def test_types_by_their_columns(columns, expected):
    assert detect_data_type(columns.split()) == expected


def test_columns_of_other_names():
    names = {"completion": "answer", "label": "good"}
    assert detect_data_type(["prompt", "answer", "good"], names) == "unpaired preference"
    assert detect_data_type(["prompt", "completion", "label"], names) == "prompt-only"
