"""Settings of revisions: further responses that the policy writes after reading a critique of its first ones."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, PositiveInt

from grape_rl.config.section import Section
from grape_rl.maths.bounds import NonNegativeInt


def _with_critique(request: str) -> str:
    if "{critique}" not in request:
        raise ValueError("has no {critique} in it: the policy would not see the critique")
    return request


class ReviseConfig(Section):
    """Revisions: the policy rewrites its worst responses, conditioned on a critique of them.

    A critique lists the rubric's verdicts against a response. A revision is one more response to the same prompt.
    """

    per_group: NonNegativeInt = 0
    """Number of responses per prompt to revise, lowest reward first; 0 for none."""
    items: PositiveInt = 3
    """Maximum number of items in a critique, those that cost most first."""
    max_characters: PositiveInt = 2000
    """Maximum length of a critique in characters; longer ones are truncated."""
    request: Annotated[str, AfterValidator(_with_critique)] = (
        "This answer was criticized:\n\n{critique}\n\nAnswer once more, and better in what was criticized. "
        "Write the new answer and nothing about the old one."
    )
    """Request for a revision: the user's next message, or for a plain-text prompt the text after the response."""
    show_gold: bool = False
    """Let a critique reveal the graders' knowledge of the right answer: why a check failed, and the reasoning of a
    critic that saw a reference or the data row."""

    def check(self, method: str, rubric: str | None, group_size: int, options: Mapping[str, Any]) -> None:
        """Check the settings against those of a run that samples responses.

        Raises:
            ValueError: revisions without a rubric, more revisions than responses per prompt, or pairs of revisions
                without any revision.
        """
        if not self.per_group:
            if options.get("pairing") == "revised":
                raise ValueError("options: pairing is 'revised' but nothing is revised: set revise.per_group")
        elif not rubric:
            raise ValueError("revise: a critique needs the verdicts of a rubric: set reward.rubric")
        elif self.per_group > group_size:
            raise ValueError(
                f"revise: per_group is {self.per_group}, but {method} samples {group_size} responses per prompt"
            )
