"""Reward models as graders: the number that the model's own pass gives, every failure typed, items in [0, 1]."""

import math

import pytest
import torch

from grape_rl.cli import main
from grape_rl.data.chat import completion_tokens, prompt_tokens
from grape_rl.maths.grape import unweighted
from grape_rl.model.forward import ForwardContext
from grape_rl.model.reward_head import build_reward_model, set_step_separator
from grape_rl.model.scratch import character_tokenizer, random_llama
from grape_rl.reward.grading import rubric_models
from grape_rl.reward.reward_model_grader import check_prompts, load_grader, reward_verdicts
from grape_rl.reward.rubric import load_rubric
from grape_rl.reward.scores import model_scorer, rubric_scorer
from grape_rl.types import Response
from small_runs import written

CPU = torch.device("cpu")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<eos>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)


def saved(folder, separator=None, template=None, context=48):
    tokenizer = character_tokenizer(["0123456789+-=. abcdefghijklmnopqrstuvwxyz:\n"])
    tokenizer.chat_template = template
    model = build_reward_model(random_llama(tokenizer, 16, 2, 2, context, seed=3), tokenizer, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(15)
    set_step_separator(model, separator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def answer(text, prompt="1+1=", finish="stop", **row):
    return Response(prompt, text, {"prompt": prompt, **row}, len(text), finish)


def own(grader, ids):
    """What the model itself says of a row of tokens."""
    return grader.model(input_ids=ids[None]).logits[0, 0].item()


def test_a_reward_is_the_models_own_score_of_prompt_and_response_with_its_end(tmp_path):
    grader = load_grader(saved(tmp_path), CPU, ForwardContext(40))
    tokenizer = grader.tokenizer
    answers = [answer("2"), answer("two", "1+one="), answer("22+", finish="length"), answer(""), answer("2.", "1+one=")]
    answers.append(answer("", finish="length"))
    found = reward_verdicts(grader, answers, "r")
    for response, verdict in zip(answers, found, strict=True):
        text = response.prompt + response.text + ("<eos>" if response.finish == "stop" else "")
        expected = own(grader, torch.tensor(tokenizer(text)["input_ids"]))
        assert verdict.score == pytest.approx(expected, abs=1e-5) and verdict.item == "r" and verdict.confidence == 1
        assert verdict.provenance == str(tmp_path)
    assert len({round(verdict.score, 4) for verdict in found}) == 6, "the end token is part of what is scored"
    assert not any(p.requires_grad for p in grader.model.parameters())
    one_by_one = [reward_verdicts(grader, [each], "r")[0].score for each in answers]
    assert [v.score for v in found] == pytest.approx(one_by_one, abs=1e-5)


def test_messages_go_through_the_reward_models_own_template(tmp_path):
    grader = load_grader(saved(tmp_path, template=TEMPLATE), CPU, ForwardContext(1000))
    asked = [{"role": "user", "content": "1+1="}]
    (found,) = reward_verdicts(grader, [Response("1+1=", "2", {"prompt": asked}, 2, "stop")], "r")
    ids = torch.tensor(grader.tokenizer("u:1+1=a:2<eos>")["input_ids"])
    assert found.score == pytest.approx(own(grader, ids), abs=1e-5)
    with_completion = completion_tokens(grader.tokenizer, asked, [{"role": "assistant", "content": "2"}], grader.end)
    assert torch.equal(torch.cat([prompt_tokens(grader.tokenizer, asked), with_completion]), ids)
    plain = load_grader(saved(tmp_path / "plain"), CPU, ForwardContext(1000))
    with pytest.raises(ValueError, match="row 0: the prompt is made of messages, and the tokenizer has no chat"):
        check_prompts(plain, [{"prompt": asked}])
    (missing,) = reward_verdicts(plain, [Response("1+1=", "2", {"prompt": asked}, 2, "stop")], "r")
    assert missing.status == "infrastructure" and "no chat template" in missing.reasoning


def test_failures_are_missing_and_never_zero(tmp_path):
    grader = load_grader(saved(tmp_path, context=12), CPU, ForwardContext(1000))
    long, short = reward_verdicts(grader, [answer("12345678"), answer("1234567")], "r")
    assert (long.status, short.status) == ("truncated", "ok") and math.isnan(long.score)
    assert long.reasoning == "13 tokens with the prompt, but the reward model takes at most 12"
    grader.model.score.weight.data.fill_(math.nan)
    scores = model_scorer(grader, None)([answer("1"), answer("12345678")], torch.tensor([0, 0]))
    (one,), (other,) = scores.verdicts
    assert (one.status, other.status) == ("infrastructure", "truncated") and scores.reward.isnan().all()
    assert one.reasoning == "the reward model's score is nan"


@pytest.mark.parametrize("how", ["min", "product", "last", "mean", None])
def test_a_process_reward_models_reward_is_made_of_its_steps(how, tmp_path):
    grader = load_grader(saved(tmp_path, separator="\n"), CPU, ForwardContext(30))
    answers = [answer("1+1\n\n2\n"), answer("2"), answer("a\nb\nc"), answer("")]
    for response, verdict in zip(answers, reward_verdicts(grader, answers, "r", how), strict=True):
        text, chances = response.prompt, []
        for step in [s for s in response.text.split("\n") if s] or [""]:
            text += step + "\n"
            chances.append(1 / (1 + math.exp(-own(grader, torch.tensor(grader.tokenizer(text)["input_ids"])))))
        mean = sum(chances) / len(chances)
        wanted = {"min": min(chances), "product": math.prod(chances), "last": chances[-1], "mean": mean}
        assert verdict.score == pytest.approx(wanted[how or "min"], abs=1e-5)


def test_what_does_not_go_with_the_model(tmp_path):
    whole = load_grader(saved(tmp_path / "whole"), CPU, ForwardContext(100))
    steps = load_grader(saved(tmp_path / "steps", separator="\n"), CPU, ForwardContext(100))
    whole.check_settings(None, 2.0, 3.0)
    steps.check_settings("mean")
    with pytest.raises(ValueError, match="whole': aggregate is min, but the model scores whole responses, not steps"):
        whole.check_settings("min")
    with pytest.raises(ValueError, match="steps': center and scale do not apply: a process reward model gives"):
        steps.check_settings(None, 1.0)


RUBRIC = """
schema: grape-rubric/1
categories:
  sums:
    items:
      - {id: brief, weight: 1, check: {type: length, max_characters: 1}}
      - {id: liked, weight: 3, reward_model: {MODEL}}
"""


def rubric(folder, model):
    (folder / "rubric.yaml").write_text(RUBRIC.replace("MODEL", model))
    return folder / "rubric.yaml"


def test_an_item_squashes_the_score_and_may_be_unsure(tmp_path):
    name = saved(tmp_path / "rm")
    found = load_rubric(rubric(tmp_path, "model: rm, center: 0.5, scale: 2.0, confidence: certainty"))
    assert found.categories["sums"].items[1].reward_model.model == name, "it lies beside the rubric"
    models = rubric_models(found, [{"prompt": "1+1="}], CPU, ForwardContext(100))
    answers = [answer("2"), answer("13"), answer("7" * 60)]
    scores = rubric_scorer(found, unweighted, models=models)(answers, torch.tensor([0, 0, 0]))
    raw = reward_verdicts(models[name], answers, "r")
    for i in (0, 1):
        brief, liked = scores.verdicts[i]
        chance = 1 / (1 + math.exp(-(raw[i].score - 0.5) / 2))
        assert (brief.item, liked.item) == ("brief", "liked")
        assert liked.score == pytest.approx(chance) and liked.confidence == pytest.approx(abs(2 * chance - 1))
        assert scores.reward[i].item() == pytest.approx((brief.score + 3 * chance) / 4)
    assert [each.status for each in scores.verdicts[2]] == ["ok", "truncated"]


def test_a_process_reward_models_item_is_a_probability_as_it_is(tmp_path):
    saved(tmp_path / "rm", separator="\n")
    found = load_rubric(rubric(tmp_path, "model: rm, aggregate: product"))
    models = rubric_models(found, [], CPU, ForwardContext(100))
    answers = [answer("1\n2")]
    ((_, liked),) = rubric_scorer(found, unweighted, models=models)(answers, torch.tensor([0])).verdicts
    (raw,) = reward_verdicts(next(iter(models.values())), answers, "r", "product")
    assert (liked.score, liked.confidence) == (raw.score, 1.0)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("model: rm, centre: 1", "items[liked].reward_model: unknown key 'centre'; did you mean 'center'?"),
        ("model: rm, scale: 0", "items[liked].reward_model.scale: Input should be greater than 0"),
        ("center: 1", "items[liked].reward_model.model: is missing"),
        ("model: rm, confidence: sure", "reward_model.confidence: Input should be 'full' or 'certainty'"),
        (
            "model: rm}, check: {type: length, max_tokens: 1",
            "needs exactly one of check, judge, reward_model and human",
        ),
    ],
)
def test_what_a_rubric_says_wrongly_of_a_reward_model(item, message, tmp_path):
    with pytest.raises(ValueError) as told:
        load_rubric(rubric(tmp_path, item))
    assert message in str(told.value) and "\n" not in str(told.value)


def test_lint_and_score_take_such_a_rubric(tmp_path, capsys):
    saved(tmp_path / "rm")
    good = rubric(tmp_path, "model: rm")
    data = written(tmp_path / "rows.jsonl", [{"prompt": "1+1=", "response": "2"}, {"prompt": "1=", "response": "11"}])
    main(["lint", str(good), "--data", str(data)])
    assert "no problems found" in capsys.readouterr().out
    main(["score", "--rubric", str(good), "--data", str(data)])
    assert "liked" in capsys.readouterr().out
    for command in (["lint"], ["score", "--data", str(data), "--rubric"]):
        assert main([*command, str(rubric(tmp_path, "model: gone"))]) == 2
        told = capsys.readouterr().err
        assert "item 'liked' of category 'sums': reward model 'gone': no loadable folder" in told
        assert len(told.splitlines()) == 1
