"""``grape score``: grade existing responses by a rubric, without training."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grape_rl.cli.arguments import listed, parsed_arguments

HELP = """usage: grape score --rubric FILE --data FILE [--KEY VALUE ...]

--rubric    a rubric file
--data      rows with a response each
--response  the column with the response (response)
--prompt    the column with the prompt (prompt)
--critics   a YAML file with the critics that judge items, by name: {default: {base_url: URL, model: NAME}},
            or {default: {local: MODEL}} for one that runs here
--allow     the Python files and modules that the rubric may call, with commas between
--tokenizer a folder or model of the Hub, whose tokens the length checks count (they count words without one)
--output    also write every response's reward and verdicts there, as JSON lines
"""


KNOWN = ("rubric", "data", "response", "prompt", "allow", "output", "tokenizer", "critics")


def main(arguments: Sequence[str]) -> None:
    """Print each item's mean score over the responses."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP)
        return
    words, own, _ = parsed_arguments(arguments, known=KNOWN)
    if words or not {"rubric", "data"} <= own.keys():
        raise ValueError("grape score needs --rubric FILE and --data FILE, and no other words")
    import torch

    from grape_rl.data.rows import require, rows
    from grape_rl.maths.grape import unweighted
    from grape_rl.parts.policy import device
    from grape_rl.reward.grading import rubric_critics, rubric_models
    from grape_rl.reward.rubric import check_rows, load_rubric
    from grape_rl.reward.scores import item_table, rubric_scorer
    from grape_rl.training.display import table
    from grape_rl.training.source import records
    from grape_rl.types import Response

    response, prompt = str(own.get("response", "response")), str(own.get("prompt", "prompt"))
    found = rows(str(own["data"]))
    require(found, [response, prompt], str(own["data"]))
    counted = _counter(own.get("tokenizer"))
    rubric = load_rubric(str(own["rubric"]), listed(own.get("allow", "")))
    check_rows(rubric, found)
    for index, row in enumerate(found):
        for column in (response, prompt):
            if not isinstance(row[column], str):
                raise ValueError(f"{own['data']}, row {index}: {column!r} is {row[column]!r:.40}, and should be text")
    if own.get("output") == own["data"]:
        raise ValueError(f"--output {own['output']}: is the data itself; name another file")
    answers = [Response(str(r[prompt]), str(r[response]), r, counted(str(r[response])), "stop") for r in found]
    models = rubric_models(rubric, [{"prompt": row[prompt]} for row in found], device("auto"), 8192)
    critics = rubric_critics(rubric, _endpoints(own.get("critics")), device=device("auto"))
    scores = rubric_scorer(rubric, unweighted, models=models, critics=critics)(answers, torch.arange(len(answers)))
    lines = [[item.category, item.item, item.graded, item.mean, _counts(item.missing)] for item in item_table(scores)]
    table(f"{len(answers)} responses of {own['data']}", ["category", "item", "graded", "mean", "missing"], lines)
    graded = int((~scores.reward.isnan()).sum())
    print(f"mean reward {float(scores.reward.nanmean()):.3f}, of {graded} responses with enough verdicts")
    if "output" in own:
        out = Path(str(own["output"]))
        told = records(answers, scores, torch.full_like(scores.reward, torch.nan))
        out.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in told), encoding="utf-8")
        print(f"written: {out}")


def _endpoints(file: str | bool | None) -> dict[str, Any]:
    """The critics of a YAML file, by name."""
    from grape_rl.reward.critic.where import endpoints
    from grape_rl.reward.strict import parsed

    if not isinstance(file, str):
        return {}
    told = parsed(Path(file))
    if not isinstance(told, dict):
        raise ValueError(f"{file}: should be critics by name, each with base_url and model")
    return endpoints(told, file)


def _counts(missing: Mapping[Any, int]) -> str:
    return ", ".join(f"{status} {count}" for status, count in missing.items()) or "-"


def _counter(tokenizer: str | bool | None) -> Callable[[str], int]:
    """How long a response is: in a tokenizer's tokens, or in words."""
    if not isinstance(tokenizer, str):
        return lambda response: len(response.split())
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer {tokenizer!r}: {str(error).splitlines()[0]}") from None
    return lambda response: len(loaded(response, add_special_tokens=False).input_ids)
