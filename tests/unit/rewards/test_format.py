"""The form is calls in every turn but the last, and exactly one answer in the last."""

import asyncio

import pytest

from mmrl.protocols import RewardContext
from mmrl.rewards.format import Format
from mmrl.types import ScoreKind, ToolCall, Turn

CALL = ToolCall(name="zoom", arguments={})


def calling(text="<tool_call>{}</tool_call>", error=None):
    return Turn(segment=0, text=text, calls=(CALL,), error=error)


def saying(text, error=None):
    return Turn(segment=0, text=text, error=error)


ANSWER = saying("<answer>7</answer>")


def test_the_form_kept_scores_one_without_a_reason(score_one):
    score = score_one(Format(), calling(), calling(), ANSWER)
    assert (score.kind, score.value, score.reason) == (ScoreKind.VALUE, 1.0, "")


def test_an_answer_at_once_keeps_the_form(score_one):
    assert score_one(Format(), ANSWER).value == 1.0


def test_it_applies_to_rows_without_gold(score_one):
    assert score_one(Format(), ANSWER).kind is ScoreKind.VALUE


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ((), "no turn"),
        ((saying("I wonder."), ANSWER), "turn 0: no call"),
        ((calling(), ANSWER, ANSWER), "turn 1: no call"),
        ((calling(error="Error: bbox_2d lies outside"), ANSWER), "turn 0: Error: bbox_2d lies outside"),
        ((saying("{", error="Error: not JSON"), ANSWER), "turn 0: Error: not JSON"),
        ((calling(),), "the last turn does not answer"),
        ((saying("<answer>7</answer>", error="Error: both"),), "the last turn does not answer"),
    ],
)
def test_a_turn_out_of_form_scores_zero_and_is_named(turns, reason, score_one):
    score = score_one(Format(), *turns)
    assert (score.kind, score.value, score.reason) == (ScoreKind.VALUE, 0.0, reason)


ONE = "the last turn needs exactly one <answer>...</answer>"
LAST = "nothing may follow </answer>"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ONE),
        ("7", ONE),
        ("<answer>7", ONE),
        ("7</answer>", ONE),
        ("<ANSWER>7</ANSWER>", ONE),
        ("<answer>7</answer><answer>7</answer>", ONE),
        ("<answer><answer>7</answer></answer>", ONE),
        ("<answer>" * 100_000 + "</answer>" * 100_000, ONE),
        ("<answer>7</answer> or 8", LAST),
        ("</answer>7<answer>", LAST),
    ],
)
def test_the_last_turn_holds_exactly_one_answer_and_ends_with_it(text, reason, score_one):
    score = score_one(Format(), saying(text))
    assert (score.value, score.reason) == (0.0, reason)


@pytest.mark.parametrize("text", ["It is <answer>7</answer>", "<answer></answer>", "<answer>\n7\n</answer>\n "])
def test_text_before_the_answer_and_white_space_around_it_are_allowed(text, score_one):
    assert score_one(Format(), saying(text)).value == 1.0


def test_an_answer_inside_the_thought_does_not_count(score_one):
    inside = "<think>Not <answer>8</answer>?</think>"
    assert score_one(Format(), saying(inside + "<answer>7</answer>")).value == 1.0
    assert score_one(Format(), saying(inside)).reason == ONE


BOXED = "the last turn needs exactly one \\boxed{...}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\\boxed{7}", ""),
        ("So it is $\\boxed{7}$.", ""),
        ("<think>\\boxed{8}?</think>\\[\\boxed{\\frac{1}{2}}\\]\n", ""),
        ("<answer>\\boxed{7}</answer>", "nothing may follow \\boxed{...}"),
        ("\\boxed{7} or 8", "nothing may follow \\boxed{...}"),
        ("\\boxed{7} \\boxed{7}", BOXED),
        ("\\boxed{\\boxed{7}}", BOXED),
        ("\\boxed{7", BOXED),
        ("<think>\\boxed{7}</think>", BOXED),
        ("<answer>7</answer>", BOXED),
        ("\\boxed{" * 100_000, BOXED),
        ("\\boxed{" + "{" * 100_000, BOXED),
    ],
)
def test_a_boxed_answer_is_asked_for_where_the_field_says_so(text, reason, score_one):
    score = score_one(Format(answer="boxed"), saying(text))
    assert (score.value, score.reason) == (0.0 if reason else 1.0, reason)


THOUGHT = "<think>Hm.</think>"
CALLED = "<tool_call>{}</tool_call>"


@pytest.mark.parametrize(
    ("rule", "first", "fault"),
    [
        ("optional", CALLED, None),
        ("optional", THOUGHT + CALLED, None),
        ("optional", "\n " + THOUGHT + CALLED, None),
        ("optional", "So: " + THOUGHT + CALLED, "<think> must open the turn"),
        ("optional", "<think>Hm." + CALLED, "<think> must be closed, and stand at most once"),
        ("optional", "Hm.</think>" + CALLED, "<think> must be closed, and stand at most once"),
        ("optional", THOUGHT + THOUGHT + CALLED, "<think> must be closed, and stand at most once"),
        ("optional", "<think><think>Hm.</think></think>", "<think> must be closed, and stand at most once"),
        ("required", THOUGHT + CALLED, None),
        ("required", CALLED, "must open with <think>"),
        ("required", "So: " + THOUGHT + CALLED, "must open with <think>"),
        ("forbidden", CALLED, None),
        ("forbidden", THOUGHT + CALLED, "<think> is not allowed"),
    ],
)
def test_a_thought_opens_its_turn_once_as_the_rule_asks(rule, first, fault, score_one):
    last = THOUGHT + "<answer>7</answer>" if rule == "required" else "<answer>7</answer>"
    score = score_one(Format(think=rule), calling(first), saying(last))
    assert score.reason == (f"turn 0: {fault}" if fault else "")
    assert score.value == (0.0 if fault else 1.0)


def test_the_last_turn_must_think_too_where_thought_is_required(score_one):
    score = score_one(Format(think="required"), calling(THOUGHT + CALLED), ANSWER)
    assert (score.value, score.reason) == (0.0, "turn 1: must open with <think>")


def test_a_thought_closed_before_it_opens_is_out_of_form(score_one):
    score = score_one(Format(), saying("<answer>7</answer></think><think>"))
    assert score.value == 0.0


def test_every_sibling_is_scored_in_order(make_trajectory, make_group):
    group = make_group(make_trajectory(ANSWER), make_trajectory(), make_trajectory(calling(), ANSWER))
    scores = asyncio.run(Format().score(group, RewardContext(step=0)))
    assert [score.value for score in scores] == [1.0, 0.0, 1.0]
