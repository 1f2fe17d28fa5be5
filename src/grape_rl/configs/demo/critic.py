"""The demo's stub critic: a function in place of a language model, with a label and a confidence."""

from collections.abc import Mapping


def directness(response: str, criterion: str, labels: Mapping[str, float]) -> tuple[str, float]:
    """The label for "gives the answer at once", and the confidence in it.

    Without the mark "Answer:", the critic can't find the answer and is unsure.
    """
    preamble, mark, _ = response.partition("Answer:")
    if not mark:
        return "partly", 0.55
    return ("no", 0.8) if preamble.strip() else ("yes", 0.95)
