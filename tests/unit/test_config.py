"""A configuration is read as meant, or refused by the dotted place of what is wrong."""

from pathlib import Path

import pytest
import yaml

from mmrl.config import RunConfig, Schedule, dump_config, load_config
from mmrl.errors import ConfigError
from mmrl.resolve import build

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))
BASE = {
    "name": "x",
    "model": {"path": "m"},
    "rewards": [
        {"use": "mmrl.rewards.answer:Exact"},
        {"use": "mmrl.rewards.format:Format", "weight": 0.5, "think": "required"},
    ],
    "stages": [
        {"type": "sft", "rows": "a.jsonl", "steps": 2, "examples_per_step": 4, "optimizer": {"lr": 0.1}},
        {
            "type": "grpo",
            "rows": "b.jsonl",
            "steps": 3,
            "prompts_per_step": 4,
            "group_size": 2,
            "optimizer": {"lr": {"kind": "cosine", "start": 1.0, "end": 0.0, "steps": 4}},
            "validation": {"rows": "c.jsonl", "every": 1},
        },
    ],
}


@pytest.fixture
def load(tmp_path):
    """load("key=value", ..., key=value, ...): overrides, and keys that replace those of BASE."""

    def run(*overrides, **keys):
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump({**BASE, **keys}))
        return load_config(path, list(overrides))

    return run


@pytest.fixture
def refusal(load, tmp_path):
    """refusal(...) is what load(...) is refused with, without the name of the file."""

    def run(*overrides, **keys):
        with pytest.raises(ConfigError) as caught:
            load(*overrides, **keys)
        return str(caught.value).replace(f"{tmp_path / 'c.yaml'}: ", "")

    return run


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_config_loads_and_reloads_equal(path, tmp_path):
    config = load_config(path)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_plugin_that_a_shipped_config_names_can_be_built(path):
    config = load_config(path)
    for plugin in (config.data.image, *config.setup, *config.episode.tools, *config.rewards):
        assert type(build(plugin.use, plugin.fields, "x")).__name__ == plugin.use.rpartition(":")[2]


def test_configs_are_shipped():
    assert ROOT / "configs" / "quickstart.yaml" in CONFIGS


def test_a_null_field_of_a_plugin_reloads_equal(load, tmp_path):
    config = load("data.image={use: 'a.b:C', limit: null}")
    assert config.data.image.fields == {"limit": None}
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("sede=1", "sede: unknown key; did you mean 'seed'?"),
        ("model.familly=a", "model.familly: unknown key; did you mean 'family'?"),
        ("checkpoint.evry=1", "checkpoint.evry: unknown key; did you mean 'every'?"),
        ("evaluate={rows: a, limt: 3}", "evaluate.limt: unknown key; did you mean 'limit'?"),
        ("stages.0.example_per_step=1", "stages.0.example_per_step: unknown key; did you mean 'examples_per_step'?"),
        ("stages.1.group_sise=1", "stages.1.group_sise: unknown key; did you mean 'group_size'?"),
        ("stages.0.group_size=2", "stages.0.group_size: unknown key; it is a key of stages.N of type grpo"),
        ("activation_checkpointing=true", "activation_checkpointing: unknown key; it is a key of stages.N"),
        ("stages.0.lora={}", "stages.0.lora: unknown key; it is a key of model"),
        ("stages.1.optimizer.warmup=1", "stages.1.optimizer.warmup: unknown key; did you mean 'warmup_steps'?"),
        ("stages.1.optimizer.lr.stat=1", "stages.1.optimizer.lr.stat: unknown key; did you mean 'start'?"),
        ("stages.1.validation.row=1", "stages.1.validation.row: unknown key; did you mean 'rows'?"),
        ("rewards.0.weight={start: 1, ends: 2}", "rewards.0.weight.ends: unknown key; did you mean 'end'?"),
        ("qqqq=1", "qqqq: unknown key"),
        ("sft={}", "sft: unknown key"),
    ],
)
def test_an_unknown_key_is_refused_by_its_place_with_the_nearest_known_one(refusal, override, text):
    assert refusal(override) == text


def test_every_problem_has_a_line_of_its_own(refusal):
    assert refusal("sede=1", "model.dtype=int8", "stages.0.steps=-1").splitlines() == [
        "model.dtype: Input should be 'float32' or 'bfloat16'",
        "stages.0.steps: Input should be greater than or equal to 0",
        "sede: unknown key; did you mean 'seed'?",
    ]


def test_overrides_are_applied_in_order_and_read_as_yaml(load):
    config = load("seed=3", "seed=4", "stages.1.steps=9", "data.cached_bytes=0", "evaluate={rows: t.jsonl}", "threads=")
    assert (config.seed, config.stages[1].steps, config.data.cached_bytes) == (4, 9, 0)
    assert config.evaluate.rows == "t.jsonl"
    assert config.threads is None
    assert load("model.path=a=b").model.path == "a=b"


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("steps", "override 'steps': write key=value"),
        ("stages.2.steps=1", "override stages.2.steps: stages has items 0 to 1"),
        ("stages.-1.steps=1", "override stages.-1.steps: stages has items 0 to 1"),
        ("stages.sft.steps=1", "override stages.sft.steps: stages has items 0 to 1"),
        ("name.first=1", "override name.first: name is a plain value"),
        (
            "stages.0.optimizer.lr.start=1",
            "override stages.0.optimizer.lr.start: stages.0.optimizer.lr is a plain value",
        ),
    ],
)
def test_an_override_that_leads_nowhere_is_refused_by_its_key(refusal, override, text):
    assert refusal(override) == text


@pytest.mark.parametrize("value", ["[1", "{a: 1", "'", "a: b: c"])
def test_an_override_that_is_no_yaml_is_refused_in_one_line(refusal, value):
    text = refusal(f"seed={value}")
    assert text.startswith("override seed: ")
    assert "\n" not in text


def test_an_override_into_an_empty_list_says_that_it_is_empty(refusal):
    assert "-1" not in refusal("rewards=[]", "rewards.0.weight=1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping of keys"),
        ("- 1", "must be a mapping of keys"),
        ("a: [", "not valid YAML: while parsing a flow node"),
        ("a: !!python/object:os.system {}", "not valid YAML: could not determine a constructor"),
        ("1: 2\nname: x\nmodel: {path: m}", "1: Keys should be strings"),
        ("name: x", "model: Field required"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        load_config(tmp_path / "none.yaml")


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match=r"c\.yaml: "):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("2E-3", 2e-3), ("1e3", 1000.0), ("1.5e-4", 1.5e-4), ("+1e2", 100.0), ("3", 3.0)],
)
def test_a_number_in_scientific_notation_is_a_number(load, text, value):
    assert load(f"stages.0.optimizer.lr={text}").stages[0].optimizer.lr == Schedule(start=value)


def test_text_that_resembles_a_number_stays_text(load):
    assert load("model.path=1e4b").model.path == "1e4b"
    assert load("model.path='1e4'").model.path == "1e4"


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("constant", [2.0, 2.0, 2.0, 2.0, 2.0]),
        ("linear", [2.0, 1.75, 1.5, 1.0, 1.0]),
        ("cosine", [2.0, 1.8535533905932737, 1.5, 1.0, 1.0]),
    ],
)
def test_a_schedule_goes_from_start_to_end_and_stays_there(kind, values):
    schedule = Schedule(kind=kind, start=2.0, end=1.0, steps=8)
    assert [schedule.at(step) for step in (0, 2, 4, 8, 100)] == pytest.approx(values, abs=1e-12)


def test_a_schedule_may_rise_and_a_plain_number_is_constant(load):
    assert Schedule(kind="linear", start=0.0, end=1.0, steps=4).at(1) == 0.25
    config = load()
    assert [config.rewards[1].weight.at(step) for step in (0, 1000)] == [0.5, 0.5]
    assert [config.stages[1].optimizer.lr.at(step) for step in (0, 2, 4)] == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("stages.1.kl_beta={kind: linear, start: 1}", "stages.1.kl_beta: a linear schedule needs 'end'"),
        ("stages.1.kl_beta={kind: cosine, start: 1}", "stages.1.kl_beta: a cosine schedule needs 'end'"),
        (
            "stages.1.aggregate=const",
            "stages.1: aggregate 'const' needs aggregate_length, e.g. the longest response in tokens",
        ),
        ("stages.1.group_size=1", "stages.1: group_size must be at least 2: a rollout is compared with its siblings"),
        (
            "stages.1.minibatches=3",
            "stages.1: prompts_per_step must be a multiple of minibatches: groups are not split",
        ),
        ("rewards=[]", "a grpo stage needs at least one entry in 'rewards'"),
        ("rewards.1.name=exact", "two rewards are named 'exact': give one another 'name'"),
        ("stages.1.name=sft", "two stages are named 'sft': give one another 'name'"),
        ("evaluate={rows: a, before_stage: rl}", "evaluate.before_stage names no stage: 'rl'"),
        ("name=../x", "name: use letters, digits, '.', '_' and '-' only: it names a folder"),
        ("name=..", "name: use letters, digits, '.', '_' and '-' only: it names a folder"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(refusal, override, text):
    assert refusal(override) == text


def test_const_aggregation_with_a_length_is_accepted(load):
    assert load("stages.1.aggregate=const", "stages.1.aggregate_length=9").stages[1].aggregate_length == 9


def test_a_reward_is_named_after_its_class_unless_named(load):
    config = load("rewards.1.name=form")
    assert [reward.name for reward in config.rewards] == ["exact", "form"]
    assert config.rewards[1].fields == {"think": "required"}


def test_a_stage_of_unknown_type_is_refused_with_the_types(refusal):
    assert refusal("stages.1.type=ppo").endswith("does not match any of the expected tags: 'sft', 'grpo'")


def test_the_seed_stands_in_the_path_of_the_model(load):
    assert load("model.path=m-{seed}", "seed=3").model_path == "m-3"


def test_a_config_does_not_change():
    config = RunConfig.model_validate(BASE)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1
