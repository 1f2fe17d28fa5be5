"""Plain English, as far as a program can hold it: how docstrings open, variable names, words this project avoids."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(path for folder in ("src", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile"]
    + [path for folder in ("src", "docs", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.md")]
    + [path for folder in ("src", "examples") for path in (ROOT / folder).rglob("*.yaml")]
    + list((ROOT / "src").rglob("*.txt"))
)

OPENERS = {"what", "whether", "who", "whom", "whose", "how", "that", "where", "of", "which", "when", "why"}
"""A docstring opens with the noun that is returned or the verb that is done, never with one of these."""

VAGUE = {"told", "found", "of", "each", "asked", "kept", "said", "heard", "at", "there", "which", "whom", "anew"}
"""Variables that do not say what they hold."""

AVOIDED = re.compile(
    r"\b(tells?|told|hears?|heard|says?|said|knows|anew|beside|besides|amiss|whereof|thereof|hitherto)\b"
    r"|\bat hand\b|\blaid over\b|\bworked out\b|\bof which\b|\bthat of the\b|\bthe others'|\bmade of\b"
    r"|\b(maximi[sz]ed|minimi[sz]ed|needed|wanted|asked) (is|are)\b"
    r"|\b\w*(behaviour|colour|neighbour|favour|labell(ed|ing)|modell(ed|ing))\w*"
    r"|\b\w+(maxim|minim|normal|optim|regular|initial|recogn|summar|token|serial)is(e|ed|es|ing|ation)\b",
    re.IGNORECASE,
)
"""Verbs of speech with a program as their subject, words that have to be translated, and British spelling."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Docstrings of modules, classes and functions, and the strings that explain an attribute or a constant."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for before, statement in zip([None, *body], body, strict=False):
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                continue
            first = before is None and isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            )
            explains = isinstance(before, ast.Assign | ast.AnnAssign)
            if isinstance(statement.value.value, str) and (first or explains):
                yield statement.lineno, statement.value.value


def variables(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every name that is assigned, and every parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.lineno, node.target.id


def comments(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every string of more than one word: docstrings, messages, help texts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def avoided(line: int, text: str) -> Iterator[str]:
    """The faults of one passage. What stands between backquotes is code, and between quotation marks an example."""
    prose = re.sub(r"`[^`]*`", "", text)
    for match in AVOIDED.finditer(prose):
        yield f"line {line + prose[: match.start()].count(chr(10))}: {match.group(0)!r}"


@pytest.mark.parametrize("path", CODE, ids=name)
def test_the_english_of_a_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    faults: list[str] = []
    for line, docstring in docstrings(tree):
        opener = re.match(r"\W*(\w+)", docstring)
        if opener and opener[1].lower() in OPENERS:
            faults.append(f"line {line}: opens with {opener[1]!r}")
    faults += [f"line {line}: a variable named {word!r}" for line, word in variables(tree) if word in VAGUE]
    for line, passage in (*strings(tree), *comments(text)):
        faults += avoided(line, passage)
    assert not faults, f"{name(path)}\n" + "\n".join(dict.fromkeys(faults))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_the_english_of_a_page(path: Path) -> None:
    text = re.sub(
        r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), path.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    faults = [fault for number, line in enumerate(text.splitlines(), 1) for fault in avoided(number, line)]
    assert not faults, f"{name(path)}\n" + "\n".join(faults)
