"""A row of the table in words: what it needs, how it is derived, what it is composed of and what may be set of it."""

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from grape_rl.maths.reduction import token_weight
from grape_rl.methods import Method, method_options

WIDTH = 100
"""Columns of what is printed."""

SYMBOLS = {
    r"D\(": "D(z) = −log σ(z)",
    r"π_old": "π_old: the policy that sampled",
    r"π_ref": "π_ref: the frozen reference",
    r"ρ_t": "ρ_t = π_θ/π_old of token t",
    r"\bh\b|h_[wl]": "h = log π_θ(y|x) − log π_ref(y|x)",
    r"Δ": "Δ = h_w − h_l",
    r"p̄|p_[wl]": "p = log π_θ(y|x)",
    r"[hp]̄": "a bar: the mean over tokens",
    r"(?<!Σ)_[wl]\b": "_w, _l: the chosen and the rejected response",
    r"sg\(": "sg(·): held fixed",
}
"""What is written in equations and derivations → what it stands for."""


def symbols(text: str) -> str:
    """What the symbols in a text stand for."""
    return "; ".join(meaning for symbol, meaning in SYMBOLS.items() if re.search(symbol, text))


def wrapped(text: str, indent: int = 0, hanging: int = 0) -> str:
    """The text in lines of up to ``WIDTH`` columns, those after the first indented by ``hanging`` more."""
    first, rest = " " * indent, " " * (indent + hanging)
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def equation(row: Method, indent: int) -> str:
    """The row's equation: on one line if it fits there, or else each of its parts on its own."""
    whole = " " * indent + row.equation
    parts = [row.equation] if len(whole) <= WIDTH else row.equation.split(";  ")
    return "\n".join(wrapped(part, indent, hanging=4) for part in parts)


def needs(row: Method) -> str:
    """What the method needs of the user: data, and which models beside the one that is trained.

    It is what the row's functions read: rewards of pairs, a value, a reference always or once a term is switched on.
    """
    read = {name for function in row.functions for name in function.parameters}
    data = row.source.needs
    if "chosen_reward" in read:
        data += ", each with a reward"
    models = ["a value model"] if "value" in read else []
    comparing = [f.function for f in row.functions if any(p.startswith("reference_") for p in f.parameters)]
    switches = [_switch(row, function) for function in comparing]
    if comparing:
        models.append("a reference" if None in switches else f"a reference if {' or '.join(map(str, switches))} is set")
    return "; ".join([data, *models])


def _switch(row: Method, function: Callable[..., Any]) -> str | None:
    """The option that a function waits for, being 0 by default; None for one that always runs."""
    found = method_options(row)
    for term in row.terms:
        if term.function is function:
            return term.option if term.option and found[term.option][1] == 0 else None
    own = (p for p in inspect.signature(function).parameters if p in found)
    return next((name for name in own if isinstance(found[name][1], float) and not found[name][1]), None)


def derivation(page: str) -> str:
    """How the method follows from what is maximized, in a few lines."""
    return (files("grape_rl") / "derivations" / f"{page}.md").read_text(encoding="utf-8").rstrip()


def parts(row: Method) -> tuple[Callable[..., Any], ...]:
    """The functions that the row is composed of, in running order, with that which weighs the tokens."""
    found = tuple(inspect.unwrap(function.function) for function in row.functions)
    return (*found[:-1], inspect.unwrap(token_weight), found[-1]) if row.reduction else found


def place(function: Callable[..., Any]) -> str:
    """Where a function (or a class) is: its file in the package, and the line of its ``def``.

    >>> place(place).startswith("grape_rl/cli/method_text.py:")
    True
    """
    function = inspect.unwrap(function)
    path = Path(inspect.getsourcefile(function) or "").relative_to(Path(str(files("grape_rl"))).parent)
    lines, start = inspect.getsourcelines(function)
    inside = next(i for i, line in enumerate(lines) if line.lstrip().startswith(("def ", "class ")))
    return f"{path.as_posix()}:{max(start, 1) + inside}"


def summary(function: Callable[..., Any]) -> str:
    """The first paragraph of a function's docstring, on one line."""
    return _paragraphs(function)[0]


def option_lines(row: Method, function: Callable[..., Any]) -> list[tuple[list[str], str]]:
    """The options that belong to a function: those that mean one thing together, each as a line, and their meaning.

    The meaning is what the docstring says beyond its summary; "" where the summary says all.
    """
    found, own = method_options(row), method_options(replace(row, defaults={}))
    told: dict[str, list[str]] = {}
    coefficients = [t.option for t in row.terms if t.option and inspect.unwrap(t.function) is function]
    parameters = inspect.signature(function).parameters.values()
    for name in (*coefficients, *(p.name for p in parameters if p.name in found and p.default is not p.empty)):
        kind, default = found[name]
        words = kind_words(kind)
        words += "; how much it counts in the loss" if name in coefficients else ""
        words += f"; the function's own default is {own[name][1]}" if name in row.defaults else ""
        said = "" if name in coefficients else meaning(function, name)
        told.setdefault(said, []).append(f"{name} = {plain(default)}  ({words})")
    return [(lines, said) for said, lines in told.items()]


def plain(default: Any) -> str:
    """A default as it is shown.

    >>> plain("token"), plain("\\n"), plain(""), plain(0.1)
    ('token', "'\\\\n'", "''", '0.1')
    """
    return str(default) if str(default).isprintable() and str(default) else repr(default)


def meaning(function: Callable[..., Any], option: str) -> str:
    """What a function's docstring says of an option beyond its summary.

    >>> from grape_rl.maths.preference import ld_dpo
    >>> meaning(ld_dpo, "tail_weight")
    'tail_weight is the weight of the tail: 1 is DPO, and 0 ignores the tail.'
    """
    head, *rest = _paragraphs(function, quotes=True)
    sentences = [s for part in rest for s in re.split(r"(?<!Dr\.)(?<=\.)\s+(?=[A-Z`\"])", part)]
    said = [s for s in sentences if f"``{option}``" in s]
    if not said and not _names(head, option):
        said = [s for s in sentences if _names(s, option)]
    return " ".join(said).replace("``", "")


def names(function: Callable[..., Any], option: str) -> bool:
    """Whether the docstring speaks of the option at all."""
    return any(_names(part, option) for part in _paragraphs(function))


def _names(text: str, option: str) -> bool:
    return bool(re.search(rf"\b{option}\b", text))


def _paragraphs(function: Callable[..., Any], quotes: bool = False) -> list[str]:
    """The docstring's paragraphs and list items, each on one line, up to what it raises or shows."""
    told = re.split(r"\n\s*\n(?=Raises|>>> )", inspect.getdoc(function) or "")[0]
    flat = [" ".join(part.removeprefix("- ").split()) for part in re.split(r"\n\s*\n|\n(?=- )", told)]
    return flat if quotes else [part.replace("``", "") for part in flat]


def kind_words(kind: Any) -> str:
    """An option's type in words, with its bounds.

    >>> from typing import Annotated, Literal
    >>> from pydantic import Field, PositiveInt
    >>> kind_words(Literal["a", "b"]), kind_words(PositiveInt), kind_words(Annotated[float, Field(ge=0, lt=1)])
    ('a | b', 'int > 0', '0 ≤ float < 1')
    """
    bounds: dict[str, Any] = {}
    for note in getattr(kind, "__metadata__", ()):
        for each in (note, *getattr(note, "metadata", ())):
            bounds |= {b: v for b in ("gt", "ge", "lt", "le") if (v := getattr(each, b, None)) is not None}
    kind = getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind
    words = " | ".join(map(str, get_args(kind))) or getattr(kind, "__name__", str(kind))
    low = next((f" {sign} {bounds[b]:g}" for b, sign in (("gt", ">"), ("ge", "≥")) if b in bounds), "")
    high = next((f" {sign} {bounds[b]:g}" for b, sign in (("lt", "<"), ("le", "≤")) if b in bounds), "")
    if low and high:
        sign, number = low.split()
        low = f"{number} {'<' if sign == '>' else '≤'} "
        return low + words + high
    return words + low + high


def command(method: str) -> str:
    """A command that runs the method on the built-in tasks."""
    start = "" if method == "sft" else "grape train sft --config demo && "
    return f"{start}grape train {method} --config demo"
