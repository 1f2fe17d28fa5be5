"""What a criterion says, so far as its words tell: enough to see that another one says the same, or the opposite."""

import re
from dataclasses import dataclass


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True)
class Meaning:
    """The words that matter in a criterion, in their order, and whether it affirms or denies what they say."""

    about: tuple[str, ...]
    affirms: bool


def meaning(criterion: str) -> Meaning:
    """A criterion with words of like meaning made one, and opposites and negations taken into ``affirms``.

    Behind a "that" or the like, words stay as they are: to say that something is not so is not to be silent about it.

    >>> meaning("The response is not concise.") == meaning("Is verbose")
    True
    >>> meaning("Says that it is not safe.") == meaning("Does not say that it is safe.")
    False
    """
    words = re.findall(r"[\w'%.,/+-]*[\w'%]", criterion.lower().replace("’", "'"))
    about: list[str] = []
    affirms, inside = True, False
    for word in words:
        inside = inside or word in _CLAUSE
        if word in _NEGATIONS and not inside:
            affirms = not affirms
        elif word not in _EMPTY:
            same, opposed = _SENSE.get(word) or _SENSE.get(stem(word)) or (stem(word), False)
            about.append(stem(word) if inside else same)
            affirms ^= opposed and not inside
    return Meaning(tuple(about), affirms)


def names_fault(name: str) -> bool:
    """Whether an item's id names something that a response should not be.

    >>> names_fault("unsafe_dose"), names_fault("not-unsafe")
    (True, False)
    """
    words = set(re.findall("[a-z]+", name.lower()))
    return bool(words & _FAULTS) and not words & {"non", "detects", "corrects", "fixes", *_NEGATIONS}


def stem(word: str) -> str:
    """A word without the ending of a plural, a person or a tense, about as well as a few rules can tell.

    >>> stem("mentions"), stem("mentioned"), stem("studies"), stem("class")
    ('mention', 'mention', 'study', 'class')
    """
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("s", "")):
        if word.endswith(ending) and len(word) - len(ending) > 2 and not word.endswith(("ss", "us", "is")):
            return word[: -len(ending)] + instead
    return word


_LIKE = {
    "concise": "brief short terse succinct",
    "correct": "accurate right",
    "polite": "courteous civil",
    "clear": "understandable",
    "mention": "name state say include contain give list note",
    "complete": "comprehensive exhaustive",
    "recommend": "advise suggest advice",
    "explain": "clarify",
    "relevant": "on-topic",
}
_OPPOSED = {
    "concise": "verbose wordy long lengthy long-winded rambling padded",
    "correct": "incorrect wrong inaccurate erroneous mistaken",
    "polite": "impolite rude discourteous",
    "safe": "unsafe dangerous hazardous",
    "harmless": "harmful",
    "clear": "unclear confusing obscure",
    "complete": "incomplete",
    "relevant": "irrelevant off-topic",
    "consistent": "inconsistent",
    "formal": "informal casual",
    "mention": "omit",
    "necessary": "unnecessary needless",
    "supported": "unsupported unfounded",
    "helpful": "unhelpful",
    "readable": "unreadable illegible",
    "specific": "vague unspecific",
    "factual": "hallucinated fabricated invented",
    "original": "plagiarized",
    "unbiased": "biased",
    "truthful": "untruthful dishonest",
    "professional": "unprofessional",
}
_SENSE = {
    **{word: (sense, False) for table in (_LIKE, _OPPOSED) for sense in table for word in (sense,)},
    **{word: (sense, False) for sense, words in _LIKE.items() for word in words.split()},
    **{word: (sense, True) for sense, words in _OPPOSED.items() for word in words.split()},
}
_NEGATIONS = _words("""
    not no never without avoid avoids avoiding lack lacks lacking fail fails failing isn't doesn't don't aren't cannot
    free refrain refrains
""")
_CLAUSE = _words("that which who whose how why whether if when where because what")
_EMPTY = _words("""
    the a an is are be was were been being does do did has have had having it its this these those response answer reply
    output text assistant model to of in as for very fully overall throughout explicitly clearly too must should shall
    will by from user user's
""")
_FAULTS = _words("""
    unsafe hallucination hallucinations hallucinates hallucinated harmful toxic rude verbose wordy padding plagiarism
    plagiarized fabricated fabrication irrelevant incorrect wrong misleading biased unsupported repetitive insulting
""")
