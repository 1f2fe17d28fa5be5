"""What may change when a run is resumed, and what may not."""

import pytest
import yaml

from grape_rl.config.config import Config
from grape_rl.setup.run_folder import resumable
from small_runs import settings


def config(folder, **critic):
    told = settings(folder, "grape")
    critics = {
        "default": {"model": "m", "base_url": "http://127.0.0.1:1/v1", "cost_cap": 1.0, "prompt_price": 1.0} | critic
    }
    return Config.model_validate(told | {"reward": told["reward"] | {"critics": critics}})


@pytest.mark.parametrize("change", [{"cost_cap": 2.0}, {"base_url": "http://127.0.0.1:2/v1"}, {"total_timeout_s": 9.0}])
def test_a_run_goes_on_where_its_critic_is_somewhere_else_or_may_cost_more(change, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config(tmp_path).model_dump(mode="json")))
    assert resumable(config(tmp_path, **change), resume=True) is None


@pytest.mark.parametrize("change", [{"model": "other"}, {"temperature": 1.0}, {"max_tokens": 7}])
def test_a_run_does_not_go_on_with_another_critic(change, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config(tmp_path).model_dump(mode="json")))
    with pytest.raises(ValueError, match=rf"was run with another reward\.critics\.default\.{next(iter(change))}"):
        resumable(config(tmp_path, **change), resume=True)
