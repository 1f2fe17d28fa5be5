"""``grape explain``, ``grape algorithms``, docs/methods.md: complete for every method, and true."""

import inspect
import re
from dataclasses import replace
from pathlib import Path

import pytest

from grape_rl import ALGORITHMS
from grape_rl.algorithms import FAMILIES
from grape_rl.cli import main
from grape_rl.cli.algorithms import HELP
from grape_rl.cli.method_text import (
    default_text,
    demo_command,
    derivation,
    documents_option,
    equation_text,
    functions_in_order,
    legend,
    needs,
    type_text,
)
from grape_rl.maths.preference import dpo
from grape_rl.method_checks import PAGE_WIDTH
from grape_rl.methods import LossTerm, method_options
from grape_rl.sources.responses import Responses
from grape_rl.training.value import ValueFunctionOptions

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
METHODS = [name for name, method in ALGORITHMS.items() if method.online_of in ("", "dpo")]
"""Every method, and one for all online forms: they share their functions, page and derivation."""
HEAD = re.compile(r"^  (\w+)  (grape_rl/\S+\.py):(\d+)$", re.MULTILINE)


def output(capsys, *arguments):
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize("name", METHODS)
def test_every_row_has_a_derivation(name):
    page = f"derivations/{ALGORITHMS[name].page}.md"
    assert (SOURCE / "grape_rl" / page).is_file(), f"write {page}"
    text = derivation(ALGORITHMS[name])
    lines = text.split("\n")
    assert 5 <= len(lines) <= 15, "a derivation has 5 to 15 lines"
    long = [f"line {i}: {len(line)} columns" for i, line in enumerate(lines, 1) if len(line) > PAGE_WIDTH]
    assert not long, f"grape explain prints {PAGE_WIDTH} columns: break the lines"
    assert all(line == line.rstrip() for line in lines), "spaces at the end of a line"
    assert not any(line.startswith(("#", "- ", "* ", "```")) for line in lines), "a derivation is plain text"
    assert text.endswith("."), "a derivation ends with a sentence"


def test_every_derivation_is_a_row_s():
    found = {path.stem for path in (SOURCE / "grape_rl" / "derivations").iterdir()}
    assert found == {method.page for method in ALGORITHMS.values()}
    pages = {method.page: derivation(method) for method in ALGORITHMS.values()}
    assert len(set(pages.values())) == len(pages), "two methods have the same derivation"


def test_names_in_derivations_are_names_in_the_code():
    """Of options, of metrics in the log, of other methods."""
    code = set(re.findall(r"\w+", " ".join(path.read_text() for path in SOURCE.rglob("*.py"))))
    unknown = {
        (name, word)
        for name in ALGORITHMS
        for word in re.findall(r"\b[a-z]{2,}(?:_[a-z]{2,})+\b", derivation(ALGORITHMS[name]))
        if word not in code
    }
    assert not unknown


@pytest.mark.parametrize("name", METHODS)
def test_explain_says_all_of_a_row(capsys, name):
    method, text = ALGORITHMS[name], output(capsys, "explain", name)
    assert max(map(len, text.split("\n"))) <= PAGE_WIDTH
    assert "``" not in text and "<class" not in text and "typing." not in text
    for part in (
        f"{name}: {method.summary}",
        *method.equation.split(";  "),
        f"paper: {method.paper}",
        f"needs: {needs(method)}",
    ):
        assert flat(part) in flat(text)
    assert f"\n\n{derivation(ALGORITHMS[name])}\n" in text

    heads = list(HEAD.finditer(text))
    assert [head[1] for head in heads] == [function.__name__ for function in functions_in_order(method)]
    own = [head[1] for head in heads if head[1] != "token_weight"]
    assert own == [inspect.unwrap(function.function).__name__ for function in method.functions], "in running order"
    ends = [head.start() for head in heads[1:]] + [text.index("\nTry it:")]
    listed: dict[str, str] = {}
    for head, end, function in zip(heads, ends, functions_in_order(method), strict=True):
        file = SOURCE / head[2]
        assert file.is_file()
        line = file.read_text().splitlines()[int(head[3]) - 1].lstrip()
        assert line.startswith((f"def {head[1]}(", f"class {head[1]}:"))
        section = text[head.end() : end]
        first = inspect.getdoc(function).split("\n\n")[0].replace("``", "")
        assert flat(section).startswith(flat(first))
        for option in re.findall(r"^      (\w+) = ", section, re.MULTILINE):
            takes = option in inspect.signature(function).parameters
            assert takes or option in [t.option for t in method.terms if t.function.__name__ == head[1]]
            listed[option] = section
    assert listed.keys() == method_options(method).keys()
    for option, (kind, default) in method_options(method).items():
        assert f"\n      {option} = {default_text(default)}  ({type_text(kind)}" in listed[option]
    assert text.count("; the function's own default is ") == len(method.defaults)
    for option in method.defaults:
        was = method_options(replace(method, defaults={}))[option][1]
        assert re.search(rf"^      {option} = .*; the function's own default is {was}\)$", text, re.MULTILINE)


COMMANDS = {demo_command(name).replace(f" {name} ", " METHOD "): name for name in METHODS}
"""One method for each command that differs by more than the method's name."""


@pytest.mark.parametrize("name", METHODS)
def test_explain_ends_with_the_command(capsys, name):
    assert output(capsys, "explain", name).endswith(f"\nTry it:\n  {demo_command(name)}\n")


@pytest.mark.parametrize("name", COMMANDS.values())
def test_the_command_of_a_method_runs(capsys, name):
    for line in demo_command(name).split(" && "):
        grape, *arguments = line.split()
        assert grape == "grape"
        assert output(capsys, *arguments, "--dry-run").startswith(f"method: {arguments[1]}\n")


def test_every_option_is_spoken_of_where_it_belongs():
    silent = {
        f"{function.__name__}: {name}"
        for method in ALGORITHMS.values()
        for function in functions_in_order(method)
        for name in inspect.signature(function).parameters
        if name in method_options(method)
        and name not in {t.option for t in method.terms}
        and not documents_option(function, name)
    }
    assert not silent, "the docstring has no word of the option"


def test_what_an_option_means_stands_below_it(capsys):
    meaning = "tail_weight is the weight of the tail: 1 is DPO, and 0 ignores the tail."
    assert re.search(rf"\n      tail_weight = 0.5  \(.*\)\n          {meaning}\n", output(capsys, "explain", "ld_dpo"))
    text = flat(output(capsys, "explain", "grpo"))
    assert "scale = group (group | batch | none) scale selects the standard deviation that divides" in text
    assert "leaves the division out (Dr. GRPO, arXiv 2503.20783)." in text, "Dr. ends no sentence"
    weighed = r"kl = 0.0 \(float[^;]*; coefficient of this term\) kl_estimator = k3 \(k1 [^)]*\) kl_estimator selects"
    assert re.search(weighed, text)
    assert "shrink = 0.8 (0 < float < 1) Line search: the step is multiplied by shrink" in flat(
        output(capsys, "explain", "trpo")
    )
    once = r"clip_high = 0.2 \([^)]*\) ring_low = 0.6 \([^)]*\) ring_high = 2.0 \([^)]*\) M = 1 if"
    assert re.search(once, flat(output(capsys, "explain", "rec_ring"))), "once for the four of them"


def test_what_is_needed_is_what_the_functions_read():
    found = {name: needs(method) for name, method in ALGORITHMS.items()}
    assert found["sft"] == "demonstrations (prompt and completion, or messages, or text)"
    assert found["rejection_sampling"] == "prompts, a reward"
    anchored = r"; a reference if (\w+ or )*kl is set"
    assert re.fullmatch(f"prompts, a reward{anchored}", found["reinforce"])
    assert re.fullmatch(f"prompts, a reward, 2 or more responses a prompt{anchored}", found["rloo"])
    assert re.fullmatch(f"prompts, a rubric, 2 or more responses a prompt{anchored}", found["grape"])
    assert found["dpo"] == "pairs (prompt, chosen, rejected); a reference"
    assert found["simpo"] == "pairs (prompt, chosen, rejected)"
    assert found["odpo"] == found["rpo"] == "pairs (prompt, chosen, rejected), each with a reward; a reference"
    for free in ("slic", "orpo", "simpo", "cpo"):
        assert found[free] == found["simpo"]
    assert [name for name in found if "value" in found[name]] == ["ppo"]
    assert [name for name in found if "rubric" in found[name]] == ["grape", "gdpo"]


def test_what_is_needed_follows_the_row():
    simpo, grpo = ALGORITHMS["simpo"], ALGORITHMS["grpo"]
    switched = replace(simpo, terms=(*simpo.terms, LossTerm(dpo, 0.0, "anchor")), defaults={"beta": 1.0})
    assert needs(switched) == "pairs (prompt, chosen, rejected); a reference if anchor is set"
    assert needs(replace(grpo, defaults={"kl": 0.1})).endswith("a prompt; a reference")

    def judged(reward, group, value):
        """An advantage that reads a value."""

    def folded(reward, group, reference_logp, kl_in_reward: float = 0.0):
        """One that reads the reference, if it is told to."""

    assert isinstance(grpo.source, Responses)
    judging = replace(grpo.source, advantage=judged, value=ValueFunctionOptions)
    assert needs(replace(grpo, source=judging)).endswith("a prompt; a value model; a reference if kl is set")
    folding = replace(grpo.source, advantage=folded)
    assert needs(replace(grpo, source=folding)).endswith("a prompt; a reference if kl_in_reward or kl is set")


def test_the_table_of_methods(capsys):
    text = output(capsys, "algorithms")
    assert max(map(len, text.split("\n"))) <= PAGE_WIDTH
    words, at = flat(text), 0
    for family, methods in FAMILIES.items():
        at = words.index(family, at)
        for method in methods:
            if method.online_of:
                assert words.index("online_NAME: The loss of NAME, any method above", at)
                assert f"{method.name}:" not in words
                continue
            shown = f"{method.name}: {method.summary} {method.equation} needs {needs(method)} {method.paper}"
            shorter = shown.replace(method.equation, method.equation.replace(";  ", " "))
            at = max(words.find(flat(each), at) for each in (shown, shorter))
            assert at >= 0, method.name
    assert sum(len(methods) for methods in FAMILIES.values()) == len(ALGORITHMS)
    assert "--markdown" in HELP


def test_an_equation_stays_on_its_line_or_is_parted_at_its_semicolons():
    method = replace(ALGORITHMS["grpo"], equation="a = 1;  b = 2")
    assert equation_text(method, 4) == "    a = 1;  b = 2"
    left, right = f"a = {'x' * 50}", f"b = {'y' * 50}"
    assert equation_text(replace(method, equation=f"{left};  {right}"), 2) == f"  {left}\n  {right}"


def test_the_page_of_methods_is_up_to_date(capsys):
    text = output(capsys, "algorithms", "--markdown")
    path = ROOT / "docs" / "methods.md"
    assert path.read_text(encoding="utf-8") == text, "grape algorithms --markdown > docs/methods.md"
    methods = [line for line in text.splitlines() if line.startswith("| [")]
    told = [method for method in ALGORITHMS.values() if not method.online_of]
    online = [line for line in methods if line.startswith("| [`online_NAME`](../src/grape_rl/derivations/online.md)")]
    assert len(online) == 1 and len(methods) == len(told) + 1
    for line, method in zip([line for line in methods if line not in online], told, strict=True):
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        name, target = re.fullmatch(r"\[`(\w+)`\]\((\S+)\)", cells[0]).groups()
        assert name == method.name
        assert (path.parent / target).resolve().read_text(encoding="utf-8").rstrip() == derivation(method)
        assert cells[1] == method.summary and cells[3:] == [needs(method), method.paper]
        assert ";  ".join(part.strip("`") for part in cells[2].split("<br>")) == method.equation


def test_symbols_are_told_where_they_stand():
    assert legend("L = D(β Δ)") == "D(z) = −log σ(z); Δ = h_w − h_l"
    assert "h = log π_θ(y|x) − log π_ref(y|x)" in legend("(h̄_w − 1)²") and "a bar" in legend("(h̄_w − 1)²")
    assert "h = " not in legend("each other")
    assert not legend("J = E[R]")
