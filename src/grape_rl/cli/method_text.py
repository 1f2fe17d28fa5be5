"""A method in words: its data and models, equation, derivation, functions and options."""

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from grape_rl.algorithms import ALGORITHMS
from grape_rl.maths.reduction import token_weight
from grape_rl.method_checks import PAGE_WIDTH, SEPARATOR
from grape_rl.methods import Method, method_options

NOTATION = {
    r"D\(": "D(z) = −log σ(z)",
    r"π_old": "π_old: the policy that sampled",
    r"π_ref": "π_ref: the frozen reference",
    r"ρ_t": "ρ_t = π_θ/π_old of token t",
    r"\bh\b|h_[wl]": "h = log π_θ(y|x) − log π_ref(y|x)",
    r"Δ": "Δ = h_w − h_l",
    r"p̄|p_[wl]": "p = log π_θ(y|x)",
    r"[hp]̄": "a bar: the mean over tokens",
    r"(?<!Σ)_[wl]\b": "_w, _l: the chosen and the rejected response",
    r"sg\(": "sg(·): stop-gradient",
}
"""Meaning of each symbol in equations and derivations, by the pattern that finds the symbol."""


def legend(text: str) -> str:
    """The meaning of every symbol that occurs in a text.

    >>> legend("Δ = h_w − h_l")
    'h = log π_θ(y|x) − log π_ref(y|x); Δ = h_w − h_l; _w, _l: the chosen and the rejected response'
    """
    return "; ".join(meaning for symbol, meaning in NOTATION.items() if re.search(symbol, text))


def wrapped(text: str, indent: int = 0, hanging: int = 0) -> str:
    """The text in lines of up to ``PAGE_WIDTH`` columns; lines after the first are indented by ``hanging`` more."""
    first, rest = " " * indent, " " * (indent + hanging)
    return textwrap.fill(
        text, PAGE_WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def equation_text(method: Method, indent: int) -> str:
    """The method's equation on one line, or one line for each of its parts if one line is too short."""
    whole = " " * indent + method.equation
    equations = [method.equation] if len(whole) <= PAGE_WIDTH else method.equation.split(SEPARATOR)
    return "\n".join(wrapped(equation, indent, hanging=4) for equation in equations)


def needs(method: Method) -> str:
    """The data and the additional models that a method needs, derived from the parameters of its functions.

    >>> from grape_rl.algorithms import ALGORITHMS
    >>> needs(ALGORITHMS["dpo"])
    'pairs (prompt, chosen, rejected); a reference'
    """
    data = method.source.needs
    rewards = _condition(method, lambda name: name == "chosen_reward")
    if rewards is not None and not method.source.samples:
        data += f", each with a reward{rewards}"
    models = {
        "a value model": _condition(method, lambda name: name == "value"),
        "a reference": _condition(method, lambda name: name.startswith("reference_")),
    }
    return "; ".join([data, *(model + when for model, when in models.items() if when is not None)])


def _condition(method: Method, reads: Callable[[str], bool]) -> str | None:
    """The condition under which a function of the method has such a parameter: "" for always, None for never."""
    functions = [f.function for f in method.functions if any(reads(name) for name in f.parameters)]
    switches = [_switch(method, function) for function in functions]
    if not functions:
        return None
    return "" if None in switches else f" if {' or '.join(map(str, switches))} is set"


def _switch(method: Method, function: Callable[..., Any]) -> str | None:
    """The option, 0 by default, that switches a function on; None for a function that always runs."""
    defaults = {name: default for name, (_, default) in method_options(method).items()}
    for term in method.terms:
        if term.function is function:
            return term.option if term.option and defaults[term.option] == 0 else None
    own = (name for name in inspect.signature(function).parameters if name in defaults)
    return next((name for name in own if isinstance(defaults[name], float) and not defaults[name]), None)


def is_built_in(method: Method) -> bool:
    """True if the method is a row of the table, and not the user's own."""
    return ALGORITHMS.get(method.name) is method


def derivation(method: Method) -> str:
    """The text that derives a method's loss from its objective; "" for a user's own method without one."""
    if not is_built_in(method):
        return method.derivation.strip()
    return (files("grape_rl") / "derivations" / f"{method.page}.md").read_text(encoding="utf-8").rstrip()


def functions_in_order(method: Method) -> tuple[Callable[..., Any], ...]:
    """The method's functions in the order they run, with the weighting of tokens before the update."""
    functions = tuple(inspect.unwrap(function.function) for function in method.functions)
    return (*functions[:-1], inspect.unwrap(token_weight), functions[-1]) if method.reduction else functions


def source_line(function: Callable[..., Any]) -> str:
    """The file and line of a function's (or a class's) definition, as ``file:line``.

    The path is relative to the folder of the package ``grape_rl``, or to the working directory if the file is in it.

    >>> source_line(source_line).startswith("grape_rl/cli/method_text.py:")
    True
    """
    function = inspect.unwrap(function)
    path = Path(inspect.getsourcefile(function) or "").absolute()
    for folder in (Path(str(files("grape_rl"))).parent, Path.cwd()):
        if path.is_relative_to(folder):
            path = path.relative_to(folder)
    lines, start = inspect.getsourcelines(function)
    decorators = next(i for i, line in enumerate(lines) if line.lstrip().startswith(("def ", "class ")))
    return f"{path.as_posix()}:{max(start, 1) + decorators}"


def first_paragraph(function: Callable[..., Any]) -> str:
    """The first paragraph of a function's docstring, on one line."""
    return _paragraphs(function)[0]


def option_lines(method: Method, function: Callable[..., Any]) -> list[tuple[list[str], str]]:
    """The options of a function, grouped by meaning: lines of ``name = default  (type)``, and the meaning.

    Options that one passage of the docstring explains are in one group. The meaning is the docstring's text on the
    options beyond its first paragraph; "" where the first paragraph suffices.
    """
    available, original = method_options(method), method_options(replace(method, defaults={}))
    groups: dict[str, list[str]] = {}
    coefficients = [t.option for t in method.terms if t.option and inspect.unwrap(t.function) is function]
    parameters = inspect.signature(function).parameters.values()
    for name in (*coefficients, *(p.name for p in parameters if p.name in available and p.default is not p.empty)):
        kind, default = available[name]
        words = type_text(kind)
        words += "; coefficient of this term" if name in coefficients else ""
        words += f"; the function's own default is {original[name][1]}" if name in method.defaults else ""
        explanation = "" if name in coefficients else option_meaning(function, name)
        groups.setdefault(explanation, []).append(f"{name} = {default_text(default)}  ({words})")
    return [(lines, explanation) for explanation, lines in groups.items()]


def default_text(default: Any) -> str:
    """A default as shown to the user.

    >>> default_text("token"), default_text("\\n"), default_text(""), default_text(0.1)
    ('token', "'\\\\n'", "''", '0.1')
    """
    return str(default) if str(default).isprintable() and str(default) else repr(default)


def option_meaning(function: Callable[..., Any], option: str) -> str:
    """The sentences of a function's docstring on an option, beyond the first paragraph.

    Sentences with the option between double backquotes come first; without any, and where the first paragraph does not
    name the option, every sentence that names it.

    >>> from grape_rl.maths.preference import ld_dpo
    >>> option_meaning(ld_dpo, "tail_weight")
    'tail_weight is the weight of the tail: 1 is DPO, and 0 ignores the tail.'
    """
    head, *rest = _paragraphs(function, quotes=True)
    sentences = [s for part in rest for s in re.split(r"(?<!Dr\.)(?<=\.)\s+(?=[A-Z`\"])", part)]
    matches = [s for s in sentences if f"``{option}``" in s]
    if not matches and not _contains_word(head, option):
        matches = [s for s in sentences if _contains_word(s, option)]
    return " ".join(matches).replace("``", "")


def documents_option(function: Callable[..., Any], option: str) -> bool:
    """True if the function's docstring names the option."""
    return any(_contains_word(paragraph, option) for paragraph in _paragraphs(function))


def _contains_word(text: str, word: str) -> bool:
    return bool(re.search(rf"\b{word}\b", text))


def _paragraphs(function: Callable[..., Any], quotes: bool = False) -> list[str]:
    """The docstring's paragraphs and list items, each on one line, without its ``Raises`` and examples."""
    text = re.split(r"\n\s*\n(?=Raises|>>> )", inspect.getdoc(function) or "")[0]
    lines = [" ".join(part.removeprefix("- ").split()) for part in re.split(r"\n\s*\n|\n(?=- )", text)]
    return lines if quotes else [line.replace("``", "") for line in lines]


def type_text(kind: Any) -> str:
    """An option's type in words, with its bounds.

    >>> from typing import Annotated, Literal
    >>> from pydantic import Field, PositiveInt
    >>> type_text(Literal["a", "b"]), type_text(PositiveInt), type_text(Annotated[float, Field(ge=0, lt=1)])
    ('a | b', 'int > 0', '0 ≤ float < 1')
    """
    bounds: dict[str, Any] = {}
    for annotation in getattr(kind, "__metadata__", ()):
        for bound in (annotation, *getattr(annotation, "metadata", ())):
            bounds |= {b: v for b in ("gt", "ge", "lt", "le") if (v := getattr(bound, b, None)) is not None}
    kind = getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind
    words = " | ".join(map(str, get_args(kind))) or getattr(kind, "__name__", str(kind))
    low = next((f" {sign} {bounds[b]:g}" for b, sign in (("gt", ">"), ("ge", "≥")) if b in bounds), "")
    high = next((f" {sign} {bounds[b]:g}" for b, sign in (("lt", "<"), ("le", "≤")) if b in bounds), "")
    if low and high:
        sign, number = low.split()
        low = f"{number} {'<' if sign == '>' else '≤'} "
        return low + words + high
    return words + low + high


def options_help(method: Method) -> str:
    """Every option of the method with its default, type and meaning, for ``grape train METHOD --help``."""
    lines, shown = [f"options of {method.name}:"], set[str]()
    for function in functions_in_order(method):
        for settings, meaning in option_lines(method, function):
            new = [setting for setting in settings if setting not in shown]
            shown.update(new)
            lines += [f"  --options.{setting}" for setting in new]
            lines += [wrapped(meaning, indent=6)] if new and meaning else []
    return "\n".join(lines)


def demo_command(method: str) -> str:
    """A command that runs the method on the built-in tasks."""
    start = "" if method == "sft" else "grape train sft --config demo && "
    return f"{start}grape train {method} --config demo"
