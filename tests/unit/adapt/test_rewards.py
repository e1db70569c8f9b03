"""Reward functions of other frameworks run as they are; what they do wrong is an error that names them and the row."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mmrl.adapt.rewards import build_reward
from mmrl.adapt.styles import Takes, completion, response, trl
from mmrl.errors import ConfigError
from mmrl.protocols import RewardContext
from mmrl.scoring import WeightedReward, score_group
from mmrl.types import MediaRef, Message, Part, Score, ScoreKind, ToolCall, Turn

FILE = Path(__file__).parent / "user_rewards.py"
RIGHT = "<think>I see it.</think> <answer>7</answer>"
WRONG = "<answer>8</answer>"


@pytest.fixture(scope="module")
def rewards():
    """rewards(name, key=value, ...) is the reward that a configuration names; each is built once."""
    built = {}

    def get(name, **fields):
        key = (name, *fields.items())
        if key not in built:
            built[key] = build_reward(f"{FILE}:{name}", fields, "rewards.0")
        return built[key]

    yield get
    for reward in built.values():
        worker = getattr(getattr(reward, "run", None), "__self__", None)
        if worker is not None:
            worker.stop()


@pytest.fixture
def scores(rewards, make_group, make_trajectory):
    """scores(name, text, ..., answer=, boxes=, metadata=, step=, key=value) are the Scores of siblings of one turn."""

    def run(name, *texts, answer="7", boxes=(), metadata=None, step=0, **fields):
        siblings = [make_trajectory(Turn(segment=1, text=t), index=i) for i, t in enumerate(texts or (RIGHT, WRONG))]
        group = make_group(*siblings, answer=answer, boxes=boxes)
        group = replace(group, sample=replace(group.sample, metadata=metadata or {}))
        return asyncio.run(rewards(name, **fields).score(group, RewardContext(step=step)))

    return run


def values(found):
    assert [score.kind for score in found] == [ScoreKind.VALUE] * len(found), found
    return [score.value for score in found]


def refusal(name, **fields):
    with pytest.raises(ConfigError) as caught:
        build_reward(f"{FILE}:{name}", fields, "rewards.0")
    return str(caught.value)


# --- each framework's functions


def test_trl_format(scores):
    assert values(scores("trl_format")) == [1.0, 0.0]


def test_trl_accuracy_reads_the_data_sets_own_solution_column(scores):
    assert values(scores("trl_accuracy", answer=None, metadata={"solution": "<answer> 7 </answer>"})) == [1.0, 0.0]


def test_trl_iou(scores):
    texts = [f"<answer>{box}</answer>" for box in ([0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30], "none")]
    assert values(scores("trl_iou", *texts, metadata={"solution": [0, 0, 10, 10]})) == [1.0, 0.5, 0.0, 0.0]


def test_trl_async(scores):
    assert values(scores("trl_judge")) == [1.0, 0.0]


def test_trl_none_is_not_applicable(scores):
    found = scores("trl_only_maths", metadata={"kind": "chemistry"})
    assert {(score.kind, score.reason) for score in found} == {
        (ScoreKind.NOT_APPLICABLE, f"{FILE}:trl_only_maths gave None")
    }
    assert values(scores("trl_only_maths", metadata={"kind": "maths"})) == [1.0, 1.0]


def test_trl_math_verify_whose_time_limit_is_a_signal(scores):
    assert values(scores("trl_math_verify", r"so $\frac{1}{2}$", "so $0.25$", answer="$0.5$")) == [1.0, 0.0]


def test_trl_is_given_the_row_by_column_with_an_entry_for_each_completion(scores, capfd):
    metadata = {"page": 3, "source": "book"}
    assert values(scores("trl_signature", boxes=[(1, 2, 3, 4)], metadata=metadata)) == [1.0, 1.0]
    completions, prompts, ids, answer, boxes, others = json.loads(capfd.readouterr().err)
    assert completions == [[{"role": "assistant", "content": text}] for text in (RIGHT, WRONG)]
    assert prompts == [[{"role": "user", "content": "Which?"}]] * 2
    assert ids == [[], []]
    assert answer == ["7", "7"]
    assert boxes == [[[1, 2, 3, 4]]] * 2
    assert {"page", "source", "solution", "ground_truth", "trainer_state"} <= set(others)


def test_trl_knows_the_step_and_may_log(scores):
    assert values(scores("trl_tool_use", step=5)) == [5.0, 5.0]


def test_easyr1_batch_with_a_weight_from_the_configuration(scores):
    assert values(scores("easyr1_batch", RIGHT, WRONG, "7")) == pytest.approx([1.0, 0.1, 0.0])
    assert values(scores("easyr1_batch", RIGHT, WRONG, "7", format_weight=0.5)) == [1.0, 0.5, 0.0]


def test_easyr1_one_by_one_with_any_keyword(scores):
    assert values(scores("easyr1_single")) == [1.0, 0.0]
    assert values(scores("easyr1_single", scale=3)) == [3.0, 0.0]


def test_easyr1_as_it_was(scores):
    assert values(scores("easyr1_old")) == [1.0, 0.0]


def test_easyr1_without_overall_is_an_error(scores):
    assert "gave a dict without 'overall'" in scores("easyr1_no_overall")[0].reason


def test_verl(scores):
    metadata = {"data_source": "clevr", "extra_info": {"worth": 2}}
    assert values(scores("verl_score", metadata=metadata)) == [2.0, 0.0]
    found = scores("verl_score", metadata={"data_source": "gsm8k"})
    reason = "NotImplementedError: Reward function is not implemented for data_source='gsm8k'"
    assert [score.reason for score in found] == [
        f"{FILE}:verl_score: rows.jsonl row 3, rollout {number}: {reason}" for number in range(2)
    ]


def test_verl_dict_of_numpy_numbers(scores):
    assert values(scores("verl_dict", bonus=0.5)) == [1.5, 0.5]


def test_verl_batch(scores):
    assert values(scores("verl_batch")) == [1.0, 0.0]


def test_verl_takes_the_ground_truth_of_the_row_before_its_gold_answer(scores):
    assert values(scores("verl_batch", answer="8", metadata={"ground_truth": "7"})) == [1.0, 0.0]


def test_verl_and_easyr1_compare_with_the_rows_own_value(scores):
    verl = {"reward_model": {"style": "rule", "ground_truth": "8"}, "answer": "no"}
    assert values(scores("verl_batch", metadata=verl)) == [0.0, 1.0]
    assert values(scores("easyr1_old", metadata={"answer": "8"})) == [0.0, 1.0]
    assert values(scores("easyr1_old", metadata={"answer": ["8"]})) == [0.0, 0.0]  # a list is passed as one


def test_ms_swift(scores):
    assert values(scores("SwiftAccuracy")) == [1.0, 0.0]


def test_ms_swift_async_made_with_what_the_configuration_says(scores):
    assert values(scores("SwiftLength", "short", "much too long")) == [1.0, 0.0]
    assert values(scores("SwiftLength", "short", "much too long", limit=20)) == [1.0, 1.0]


def test_verifiers(scores):
    assert values(scores("verifiers_exact")) == [1.0, 0.0]
    assert values(scores("verifiers_info", metadata={"worth": 0.25})) == [0.25, 0.25]


def test_a_function_of_our_own_style(scores):
    assert values(scores("own", step=4, worth=0.5)) == [2.0, 2.0]


@pytest.mark.parametrize("name", ["verl_batch", "easyr1_old", "easyr1_batch", "SwiftAccuracy", "trl_accuracy"])
def test_a_row_without_a_gold_answer_is_not_scored_by_what_asks_for_one(name, scores):
    found = scores(name, answer=None)
    assert {(score.kind, score.reason) for score in found} == {(ScoreKind.NOT_APPLICABLE, "the row has no gold answer")}


# --- several turns


@pytest.fixture
def two_turns(make_trajectory, picture):
    crop = picture(1)
    call = Turn(
        segment=1,
        text="<think>Closer.</think><tool_call>{}</tool_call>",
        calls=(ToolCall(name="zoom", arguments={"bbox_2d": [1, 2, 3, 4]}),),
        results=(crop.key,),
    )
    return make_trajectory(call, Turn(segment=3, text="<answer>7</answer>", answer="7"), media=[crop])


def test_the_turns_of_an_episode_are_joined_for_functions_of_text(two_turns):
    assert response(two_turns) == "<think>Closer.</think><tool_call>{}</tool_call>\n<answer>7</answer>"


def test_the_turns_of_an_episode_are_messages_for_functions_of_messages(two_turns):
    zoom = {"type": "function", "function": {"name": "zoom", "arguments": {"bbox_2d": [1, 2, 3, 4]}}}
    assert completion(two_turns) == [
        {"role": "assistant", "content": two_turns.turns[0].text, "tool_calls": [zoom]},
        {"role": "tool", "content": [{"type": "image"}]},
        {"role": "assistant", "content": "<answer>7</answer>"},
    ]


def test_what_the_model_was_told_of_a_failed_call_is_a_tool_message(make_trajectory):
    failed = Turn(segment=1, text="<tool_call>", error="Error: not closed")
    messages = completion(make_trajectory(failed, "7"))
    assert messages[1] == {"role": "tool", "content": "Error: not closed"}


def test_an_episode_without_a_turn_has_an_empty_completion(make_trajectory):
    broken = make_trajectory(Turn(segment=0, text="", error="Error: engine"))
    assert completion(broken) == completion(make_trajectory()) == [{"role": "assistant", "content": ""}]


def test_images_of_the_prompt_are_parts(make_group, make_trajectory):
    group = make_group(make_trajectory("7"), answer="7")
    message = Message(role="user", parts=(Part(media=0), Part(text="Which?")))
    sample = replace(group.sample, messages=(message,), media=(MediaRef(kind="image", path="a.png"),))
    calls = trl(Takes.of(lambda prompts: None), replace(group, sample=sample), RewardContext(step=0))
    content = [{"type": "image"}, {"type": "text", "text": "Which?"}]
    assert calls.arguments == [((), {"prompts": [[{"role": "user", "content": content}]]})]


# --- functions that misbehave


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("raise", "ZeroDivisionError: division by zero"),
        ("exit", "SystemExit: 3"),
        ("die", "its process ended with status 7"),
        ("segfault", "its process ended with status -11"),
        ("none", "must give a list of 2 values, gave None"),
        ("short", "must give a list of 2 values, gave 1"),
        ("long", "must give a list of 2 values, gave 3"),
        ("scalar", "must give a list of 2 values, gave 1.0"),
        ("dict", "must give a list of 2 values, gave {'0': 1.0}"),
        ("generator", "must give a list of 2 values, gave 'a generator'"),
        ("nan", "gave nan"),
        ("inf", "gave inf"),
        ("text", "must give a number, gave '1.0'"),
        ("lists", "must give a number, gave [1.0]"),
        ("objects", "must give a number, gave 'a object'"),
        ("complex", "must give a number, gave 'a complex'"),
        ("huge", "must give a number, gave 'an int that is too large for a float'"),
    ],
)
def test_a_function_that_misbehaves_is_an_error_naming_it_and_the_row(what, reason, scores):
    expected = [f"{FILE}:hostile: rows.jsonl row 3, rollout {number}: {reason}" for number in range(2)]
    found = scores("hostile", metadata={"what": what})
    assert [(score.kind, score.reason) for score in found] == [(ScoreKind.ERROR, text) for text in expected]
    assert values(scores("hostile", metadata={"what": "fine"})) == [0.5, 0.5]  # and the next call works


@pytest.mark.parametrize(
    ("what", "value"), [("array", 1.0), ("bools", 1.0), ("tuple", 1.0), ("print", 0.5), ("mutate", 0.5)]
)
def test_what_is_harmless_counts(what, value, scores):
    assert values(scores("hostile", metadata={"what": what})) == [value, value]


def test_one_bad_value_costs_one_sibling(scores):
    assert [score.kind for score in scores("hostile", metadata={"what": "one bad"})] == [
        ScoreKind.VALUE,
        ScoreKind.ERROR,
    ]


@pytest.mark.parametrize("what", ["sleep", "regex"])
def test_a_function_that_hangs_is_killed_and_the_next_call_works(what, scores, rewards):
    found = scores("hostile", metadata={"what": what}, timeout_s=1)
    assert {score.kind for score in found} == {ScoreKind.ERROR}
    assert found[1].reason == f"{FILE}:hostile: rows.jsonl row 3, rollout 1: took longer than 1 s"
    assert rewards("hostile", timeout_s=1).run.__self__.process is None
    assert values(scores("hostile", metadata={"what": "fine"}, timeout_s=1)) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("what", "reason"), [("sleep", "took longer than 0.2 s"), ("raise", "TimeoutError: the judge is away")]
)
def test_an_async_function_that_fails_is_an_error(what, reason, scores):
    found = scores("hostile_async", metadata={"what": what}, timeout_s=0.2)
    assert found[0].reason == f"{FILE}:hostile_async: rows.jsonl row 3, rollout 0: {reason}"


@pytest.mark.parametrize("name", ["hostile", "hostile_async"])
def test_a_function_that_changes_what_it_is_given_harms_nobody(name, rewards, make_group, make_trajectory):
    group = make_group(make_trajectory(RIGHT), make_trajectory(WRONG, index=1))
    metadata = {"what": "mutate", "list": [1, 2]}
    group = replace(group, sample=replace(group.sample, metadata=metadata))
    asyncio.run(rewards(name).score(group, RewardContext(step=0)))
    assert metadata == {"what": "mutate", "list": [1, 2]}
    assert [t.turns[0].text for t in group.trajectories] == [RIGHT, WRONG]


def test_metadata_that_cannot_be_copied_is_an_error(scores):
    reason = scores("hostile", metadata={"what": "fine", "odd": lambda: 0})[0].reason
    assert "its arguments cannot be copied" in reason


def test_lone_surrogates_and_megabytes_of_text_are_passed_on(scores):
    assert values(scores("trl_format", "\ud800", "x" * 5_000_000)) == [0.0, 0.0]


def test_a_column_that_the_row_has_not_is_an_error_naming_it(scores):
    assert scores("trl_needs_page")[0].reason == f"{FILE}:trl_needs_page: rows.jsonl row 3: its metadata have no 'page'"
    assert values(scores("trl_needs_page", metadata={"page": 3})) == [3.0, 3.0]


def test_an_error_stays_an_error_in_the_combined_reward(rewards, make_group, make_trajectory):
    group = make_group(make_trajectory("7"))
    group = replace(group, sample=replace(group.sample, metadata={"what": "nan"}))
    term = WeightedReward(name="mine", reward=rewards("hostile"), weight=lambda step: 1.0)
    scored = asyncio.run(score_group(group, [term], RewardContext(step=0)))
    assert scored.trajectories[0].reward == Score.error(f"mine: {FILE}:hostile: rows.jsonl row 3, rollout 0: gave nan")


# --- configurations


def test_parameters_that_tell_no_style_are_refused_with_the_styles():
    assert refusal("mystery") == (
        f"rewards.0: {FILE}:mystery: the parameters (x, y) do not tell its style; "
        "set style to one of easyr1, mmrl, ms_swift, trl, verifiers, verl"
    )


def test_a_style_that_is_named_counts(scores):
    assert "TypeError" in scores("mystery", style="easyr1")[0].reason  # called with a dict, as EasyR1 does


def test_an_unknown_style_is_refused():
    assert refusal("mystery", style="rllib").startswith("rewards.0.style: Input should be 'trl', 'easyr1'")


def test_a_key_that_is_no_parameter_is_refused():
    assert refusal("easyr1_batch", format_wait=1) == (
        f"rewards.0.format_wait: {FILE}:easyr1_batch has no such parameter; did you mean 'format_weight'?"
    )
    assert "has no such parameter" in refusal("trl_format", page=3)
    assert "has no such parameter; did you mean 'limit'?" in refusal("SwiftLength", limits=3)


def test_a_parameter_that_nothing_can_fill_is_refused_by_name():
    for name, style, parameter in (
        ("verl_judge", "verl", "judge"),
        ("verifiers_parser", "verifiers", "parser"),
        ("SwiftMade", "ms_swift", "model"),
    ):
        expected = f"there is nothing to pass as {parameter!r} (style {style}); give it a value here"
        assert refusal(name) == f"rewards.0: {FILE}:{name}: {expected}"


def test_a_parameter_that_the_configuration_fills_is_not_missing(scores):
    assert values(scores("verl_judge", judge="http://localhost")) == [1.0, 1.0]


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf")])
def test_a_time_limit_must_be_one(timeout_s):
    assert refusal("trl_format", timeout_s=timeout_s) == "rewards.0: timeout_s must be more than 0 seconds"


def test_what_is_neither_dataclass_nor_function_is_refused():
    assert "is not a dataclass" in refusal("__doc__")


def test_a_dataclass_is_built_as_ever():
    reward = build_reward("mmrl.rewards.answer:Number", {"absolute": 0.5}, "rewards.0")
    assert reward.absolute == 0.5
    with pytest.raises(ConfigError, match="is not a reward: it has no 'score'"):
        build_reward("mmrl.processors.image:Image", {}, "rewards.0")


def test_a_medium_is_known_by_its_kind(make_trajectory, picture):
    sound = replace(picture(2), kind="audio")
    called = Turn(segment=1, text="call", results=(sound.key,))
    assert completion(make_trajectory(called, "7", media=[sound]))[1]["content"] == [{"type": "audio"}]
