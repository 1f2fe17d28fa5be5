"""The meaning of a criterion by its words: enough to find criteria with equal or opposite meaning."""

import re
from dataclasses import dataclass


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True)
class Meaning:
    """The significant words of a criterion, in order, and whether it affirms or denies them."""

    about: tuple[str, ...]
    affirms: bool


def parse_criterion(criterion: str) -> Meaning:
    """The meaning of a criterion. Synonyms map to one word; antonyms and negations flip ``affirms``.

    Words after "that" or a similar conjunction stay as they are: to state that something is false is not the same as
    not to state it.

    >>> parse_criterion("The response is not concise.") == parse_criterion("Is verbose")
    True
    >>> parse_criterion("States that it is not safe.") == parse_criterion("Does not state that it is safe.")
    False
    """
    words = re.findall(r"[\w'%.,/+-]*[\w'%]", criterion.lower().replace("’", "'"))
    about: list[str] = []
    affirms, in_clause = True, False
    for word in words:
        in_clause = in_clause or word in _CLAUSE
        if word in _NEGATIONS and not in_clause:
            affirms = not affirms
        elif word not in _EMPTY:
            synonym, is_antonym = _SENSE.get(word) or _SENSE.get(stem(word)) or (stem(word), False)
            about.append(stem(word) if in_clause else synonym)
            affirms ^= is_antonym and not in_clause
    return Meaning(tuple(about), affirms)


def names_fault(name: str) -> bool:
    """True if an item's id names something that a response should not be.

    >>> names_fault("unsafe_dose"), names_fault("not-unsafe")
    (True, False)
    """
    words = set(re.findall("[a-z]+", name.lower()))
    return bool(words & _FAULTS) and not words & {"non", "detects", "corrects", "fixes", *_NEGATIONS}


def stem(word: str) -> str:
    """A word without the ending of a plural, a person or a tense, by a few approximate rules.

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
    "mention": "name state include contain give list note",
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
    "say": ("mention", False),
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
