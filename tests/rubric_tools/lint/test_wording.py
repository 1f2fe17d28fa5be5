"""Criteria of many fields: which of them ask for two things, and which say the same or the opposite."""

import pytest

from grape_rl.rubric_tools.lint.meaning import names_fault, parse_criterion
from grape_rl.rubric_tools.lint.wording import second_demand

TWO = """
Names the drug and explains how it works.
The response identifies the bug and proposes a fix.
States the correct dose and warns about side effects.
Is polite and concise.
The answer is clear, accurate and complete.
Gives the final answer; shows every step.
The response is short. It uses no jargon.
Recommends seeing a doctor and avoids giving a diagnosis.
Describes the plot as well as evaluates the style.
The code compiles and passes the tests.
The summary covers the main events and is under 100 words.
Explains the theorem clearly and correctly.
Mentions the deadline but does not reveal the price.
Does the response apologize for the delay and offer a refund?
The response should cite a source and include the date.
Translate the sentence and keep the rhyme.
Compute the integral and state the constant of integration.
Names the capital, then gives its population.
Uses the metric system and never rounds.
Acknowledges the user's feelings and suggests a next step.
The poem rhymes and has four stanzas.
Cites the statute and also mentions the precedent.
Lists three causes. Explains one effect.
The essay has a thesis and must have a conclusion.
Does the answer identify the fallacy and correct it?
Refuses to help and explains why.
The response is honest and kind.
The plan is realistic and fully costed.
Converts the units, and checks the result.
The model asks about allergies and is careful about drug interactions.
Asks how long the cough has lasted and whether there is fever. Recommends a chest X-ray.
Provides the formula and defines each symbol.
Sorts the list in place and does not allocate memory.
Correctly computes the derivative, and simplifies the result.
The response must be in French and must not exceed 50 words.
Introduces the speaker and thanks the audience.
The story has a twist and is set in Paris.
Refuses the request but offers a safe alternative.
The table is sorted and complete.
Gives two examples; each has a source.
Interpret the p-value and report the confidence interval.
The answer is well-organized and easy to follow.
Summarizes the contract and flags the penalty clause.
Quotes the law accurately and cites the article.
The recipe lists quantities and gives the oven temperature.
Describes the experiment, then discusses its limits.
Avoids jargon and keeps sentences short.
Should mention inflation and should explain its cause.
Identifies the metaphor and interprets it.
"""
ONE = """
Names the risks and benefits.
Explains the causes and effects of inflation.
Lists the strengths and weaknesses of both arguments.
The response is polite.
Gives the names and addresses of the witnesses.
States that the heart pumps blood and carries oxygen.
Distinguishes between bread and butter expenses.
The answer is between 5 and 10.
Describes how plants absorb and store water.
Asks the user to stop and rest.
Advises the patient to find a therapist for diagnosis and treatment.
Avoids words such as "simple and easy".
Uses the first and last names of the author.
The response is written in black and white terms.
Compares supply and demand.
Notes that the treaty was signed and was later broken.
The code handles reads and writes.
Mentions daily and weekly doses.
Says when to see a doctor (for example fever and a stiff neck).
Gives the date of birth. For example, 3 May 1921 and similar forms count.
Quotes Romeo and Juliet.
Explains why the sky is blue and sunsets are red.
The response contains no spelling and grammar mistakes.
The summary mentions both the plaintiff and the defendant.
Recommends rest and fluids.
Does the response identify the protagonist and antagonist?
Identifies the drug that treats pain and reduces fever.
Includes a table with rows and columns.
The conclusion follows from the premises and the data.
Uses a calm and supportive tone.
Points out that states and nations differ.
Shows the work for parts a and b.
The bow and arrow is described.
Warns against mixing bleach and ammonia.
Is about cats and dogs.
Mentions that costs rise and that demand falls.
Explains terms and conditions in plain words.
States the year. The year is 1789.
The response should name the king and queen.
Refers to the U.S. Constitution.
Recommends urgent evaluation for chest pain and shortness of breath.
Explains that insulin lowers blood sugar and is made in the pancreas.
Mentions the pros and cons of renting.
Distinguishes type 1 and type 2 diabetes.
Names Watson and Crick as discoverers.
Says that the function is pure and has no side effects.
Uses present and past tense where fitting.
Mentions supply and demand as drivers of price.
Solves for x and y.
Describes the steps needed to clean and dress the wound.
Explains how to knead and shape the dough.
Gives the area and perimeter of the rectangle.
Identifies Romeo and Juliet as the protagonists.
Avoids spelling and grammar errors.
Compares the costs and benefits each option has for users.
Is written in the first person.
The response lists what the user should pack and wear.
Notes the trade-off between speed and accuracy.
Is suitable for children between 8 and 12.
The reply addresses both questions.
Tells the user when to stop and seek help.
Cites Smith and Jones (2020).
Recommends a balanced diet with fruits, vegetables and whole grains.
The essay's introduction names the author and title.
Advises the user to back up the data and restart the server.
Includes at least one example of cause and effect.
Mentions that the treaty ended the war and redrew borders.
The code uses a stack and a queue.
Explains the difference between mitosis and meiosis.
Identifies the speaker as a mother who works and studies at night.
The answer is 3 and a half.
Mentions research and development spending.
"""
NOT_FOUND = """
Clearly states that the patient should call 911 and advises against driving.
The email has a subject line and ends with a signature.
The function handles empty input and returns None.
The report is factual and free of bias.
The tone is warm and the spelling is correct.
"""
"""Two things as well, which a list of words does not see."""


def lines(text):
    return text.strip().splitlines()


def test_the_lists_are_long():
    assert len(lines(TWO)) > 45 and len(lines(ONE)) > 65
    assert len({*lines(TWO), *lines(ONE)}) == len(lines(TWO)) + len(lines(ONE))


@pytest.mark.parametrize("criterion", lines(TWO))
def test_second_demand(criterion):
    found = second_demand(criterion)
    assert found and found.lstrip("; ").lower() in criterion.lower()


@pytest.mark.parametrize("criterion", lines(ONE))
def test_one_thing(criterion):
    assert second_demand(criterion) == ""


@pytest.mark.parametrize("criterion", lines(NOT_FOUND))
def test_what_is_not_found(criterion):
    """Said so that nobody takes silence for proof: who makes one of these found moves it up."""
    assert second_demand(criterion) == ""


@pytest.mark.parametrize(
    ("criterion", "found"),
    [
        ("Names the dose and explains the risk.", "and explains"),
        ("Names the dose, and also explains the risk.", "and also explains"),
        ("Is polite and concise.", "polite and concise"),
        ("Is polite, warm and fully concise.", "polite, warm and fully concise"),
        ("Explains it clearly and correctly.", "clearly and correctly"),
        ("Gives the answer; shows every step.", "; shows every step."),
        ("Lists three causes. Explains one effect.", "explains one effect."),
        ('Uses the word "and explains".', ""),
        ("Says when to rest (and explains why).", ""),
        ("", ""),
    ],
)
def test_what_joins_them(criterion, found):
    assert second_demand(criterion).lower() == found


SAME = [
    ("Is concise.", "The response is short."),
    ("Mentions the dose", "The answer names the dose."),
    ("Is accurate", "Is correct."),
    ("Recommends a doctor", "Suggests a doctor"),
    ("Is not rude", "is polite"),
    ("Avoids jargon", "Does not have jargon"),
    ("Studies are cited", "Study is cited"),
]
OPPOSITE = [
    ("Is concise", "Is not concise"),
    ("Is concise", "Is verbose"),
    ("Mentions the dose", "Fails to mention the dose."),
    ("Mentions the dose", "Omits the dose."),
    ("Mentions the dose", "Doesn’t mention the dose"),
    ("Is safe", "The response is unsafe."),
    ("The answer is relevant", "The answer is off-topic"),
    ("Contains jargon", "Does not contain jargon"),
]
OTHER = [
    ("Gives at least 3 examples", "Gives at least 5 examples"),
    ("Gives at least 3 examples", "Gives at most 3 examples"),
    ("Says that dogs chase cats", "Says that cats chase dogs"),
    ("Says that it is not safe.", "Does not say that it is safe."),
    ("Names the dose of aspirin", "Names the dose of ibuprofen"),
    ("Names a cause or an effect", "Names a cause and an effect"),
    ("Mentions the first law", "Mentions the second law"),
    ("Costs 3.5 euros", "Costs 3.6 euros"),
    ("Is class-based", "Is pass-based"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same(one, other):
    assert parse_criterion(one) == parse_criterion(other) and parse_criterion(one).about


@pytest.mark.parametrize(("one", "other"), OPPOSITE)
def test_the_opposite(one, other):
    assert (
        parse_criterion(one).about == parse_criterion(other).about
        and parse_criterion(one).affirms != parse_criterion(other).affirms
    )


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_another_thing(one, other):
    assert parse_criterion(one) != parse_criterion(other)
    assert parse_criterion(one).about != parse_criterion(other).about


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("unsafe", True),
        ("unsafe_dose", True),
        ("Hallucinates-facts", True),
        ("not-unsafe", False),
        ("no_hallucination", False),
        ("detects_wrong_units", False),
        ("safe", False),
        ("wrongful-dismissal", False),
    ],
)
def test_names_of_faults(name, fault):
    assert names_fault(name) is fault
