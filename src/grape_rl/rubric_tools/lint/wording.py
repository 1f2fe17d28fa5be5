"""Double-barreled criteria: those that ask for two things at once, recognized by their words.

One verdict on two demands does not show which of them is met, so the reward cannot distinguish them. There is no parser
here, only lists of words. They are chosen for precision: a match is seldom wrong, but many such criteria do not match.
"""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VERBS = _words("""
    acknowledge add address admit advise answer apologize ask assess avoid calculate check cite claim clarify classify
    compare complete compute conclude confirm contrast convert correct credit decline define demonstrate derive describe
    determine disclose discourage discuss distinguish emphasize encourage end estimate evaluate exclude explain express
    finish follow give handle highlight identify ignore illustrate implement include indicate infer inform interpret
    introduce invite justify keep label limit link list maintain mention name note offer omit outline perform point
    predict present preserve prioritize propose prove provide quote recognize recommend refer reflect refrain refuse
    refute reject remain remind report respect respond return show solve specify start state suggest summarize
    support thank translate urge use validate verify warn write
""") | {"say", "tell"}
"""Verbs that criteria use for demands on a response."""
_NOUNS_TOO = _words("""
    add address answer ask check claim contrast credit end estimate finish follow highlight label limit link list name
    note offer outline point present quote report respect return show start state support use write
""") | {"say"}
"""Verbs that may be nouns ("names and addresses"): they count as verbs only if an object follows directly."""
_BE = _words("is are was were has have does do can cannot must should shall will may isn't doesn't never avoids lacks")
_ARTICLES = _words("the a an its their his her")
_OBJECTS = _ARTICLES | _words(
    "that how why what which whether when where who this these each every all no any at exactly"
)
_NO_VERBS = _words("""
    as of in on at to for from by with within without about across versus towards than like into over under
    between both not no how why what when where which who whose whether all only even also then else because if or nor
    is this his hers its it that the a an each every any either neither such perhaps thus less plus
""") | {"besides"}
_ADVERB = r"(?:also |then |further |finally |clearly |\w+ly )*"
_JOINT = re.compile(
    rf"(?:,? and|,? but|,? as well as|,? then) {_ADVERB}(?P<verb>[\w']+)(?:(?= (?P<next>[\w']+)))?",
)
_CLAUSE = re.compile(r"\b(?:that|which|who|whose|how|why|whether|if|when|where|because|what|while|as)\b")
_ADJECTIVES = re.compile(
    r"\b(?:is|are|be|remains?|stays?|sounds?|seems?)(?: \w+ly| very| both| always| not)* (?P<one>[\w-]+)(?:, [\w-]+)*"
    r",? (?:and|but)(?: \w+ly| very| not)* (?P<two>[\w-]+)(?= (?:for|to|throughout|overall|enough)\b|[,.?!]|$)"
)
_NO_ADJECTIVES = _NO_VERBS | _words("there one two three four five six seven eight nine ten up out given listed shown")
_ADVERBS = re.compile(r"\b(?P<one>\w+ly) and (?P<two>\w+ly)\b")
_MANNERS = _words("""
    accurately briefly calmly carefully clearly coherently completely comprehensively concisely consistently
    convincingly correctly deeply effectively efficiently fully honestly insightfully kindly logically politely
    precisely respectfully safely simply succinctly thoroughly thoughtfully truthfully
""")
_SUBJECT = re.compile(
    r"^(?:does |do |did |is )?(?:(?:the|this|an?|every|each) )?(?:[\w-]+ ){0,1}?"
    r"(?:response|answer|reply|output|text|solution|summary|explanation|essay|assistant|model|story|poem|code|it) "
    r"(?:(?:must|should|shall|will|has to|needs to) )?"
)
_MODAL = re.compile(r"^(?:does|do|did|can|will)\b|\b(?:must|should|shall|will|has to|needs to)\b")
_ASIDE = re.compile(
    r"(?:for (?:example|instance)|e\.?g|i\.?e|that is|note|this|these|those|otherwise|if|unless|no credit|award|count|"
    r"(?:other|minor|small|similar) |it (?:does not|doesn't|need not|may|can|is (?:fine|enough|acceptable)))\b",
    re.IGNORECASE,
)
_APART = re.compile(r"""\([^()]*\)|"[^"]*"|“[^”]*”|`[^`]*`|(?<!\w)'[^']*'(?!\w)|\$[^$]*\$""")
_END = re.compile(r"(?<=[a-z][a-z)%][.!?])\s+(?=[A-Z])")


def second_demand(criterion: str) -> str:
    """The words that add a second demand to a criterion; "" if it seems to have one demand.

    >>> second_demand("Names the dose and explains the risk."), second_demand("Names the risks and benefits.")
    ('and explains', '')
    """
    # Text in brackets or quotation marks is an aside, or a quotation from the response.
    text = " ".join(_APART.sub("xx", criterion).split())
    sentences = [sentence for sentence in _END.split(text) if not _ASIDE.match(sentence)]
    for sentence in sentences:
        if second := _within_sentence(sentence.lower()):
            return second
    demands = [sentence for sentence in sentences if _is_demand(sentence.lower())]
    return " ".join(demands[1].split()[:3]) if len(demands) > 1 else ""


def _is_demand(sentence: str) -> bool:
    """True if a sentence demands something of the response."""
    rest = _SUBJECT.sub("", sentence)
    first = rest.rstrip(".?!").split(" ")[0]
    return rest != sentence or first in _VERBS or _base(first) in _VERBS


def _within_sentence(sentence: str) -> str:
    """The second demand within one sentence: after a semicolon or a conjunction, or as a second adjective or adverb."""
    parts = sentence.split("; ")
    if len(parts) > 1 and all(len(part.split()) > 1 for part in parts):
        return f"; {' '.join(parts[1].split()[:3])}"
    first = _SUBJECT.sub("", sentence).split(" ")[0]
    base_form = bool(_MODAL.search(sentence)) or first in _VERBS
    for match in _JOINT.finditer(sentence):
        in_clause = bool(_CLAUSE.search(sentence[: match.start()]))
        if _is_second_verb(match["verb"], match["next"] or "", base_form, in_clause):
            return match[0].strip(" ,")
    for match in _ADJECTIVES.finditer(sentence):
        pair = {match["one"], match["two"]}
        if (
            not _CLAUSE.search(sentence[: match.start()])
            and not _NO_ADJECTIVES & pair
            and not re.search(r"\d", match[0])
        ):
            return sentence[match.start("one") : match.end()]
    for match in _ADVERBS.finditer(sentence):
        if {match["one"], match["two"]} <= _MANNERS:
            return match[0]
    return ""


def _is_second_verb(word: str, following: str, base_form: bool, in_clause: bool) -> bool:
    """True if a word after "and" is the verb of a second demand.

    ``base_form``: the verbs are in the base form, after a modal or in the imperative. ``in_clause``: the word is in a
    subordinate clause, where only a verb of ``_VERBS`` counts.
    """
    base = word if base_form else _base(word)
    if base in _VERBS and (base not in _NOUNS_TOO or following in _OBJECTS) and not (base_form and in_clause):
        return True
    if in_clause or word in _NO_VERBS - {"is"}:
        return False
    if word in _BE:
        return True
    return following in _ARTICLES and (base_form or bool(base))


def _base(word: str) -> str:
    """The base form of a verb in the third person; "" if the word cannot be one.

    >>> _base("identifies"), _base("discusses"), _base("states"), _base("risk")
    ('identify', 'discuss', 'state', '')
    """
    if not word.endswith("s") or word.endswith("ss") or len(word) < 4:
        return ""
    for ending, instead in (("ies", "y"), ("es", ""), ("s", "")):
        if word.endswith(ending) and (base := word[: -len(ending)] + instead) in _VERBS:
            return base
    return word[:-1]
