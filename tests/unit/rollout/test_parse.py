"""What a turn says stands behind its thought."""

import pytest

from mmrl.models.hermes import Hermes
from mmrl.rollout.parse import Action, after_think, parse_turn
from mmrl.types import ToolCall

CODEC = Hermes()
ZOOM = ToolCall(name="zoom", arguments={"box": [1, 2]})
CALL = CODEC.format_call(ZOOM)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("", ""),
        ("7", "7"),
        ("<think>Hm.</think>7", "7"),
        ("Hm.</think>7", "7"),  # opened in the header
        ("<think>a</think>b<think>c</think>7", "7"),
        ("<think>Hm. 7", ""),
        ("7<think>Hm.", "7"),
        ("<think>a</think>7<think>Hm. 8", "7"),
        ("</think>" * 3, ""),
        ("<think>" * 200_000, ""),
    ],
)
def test_the_thought_is_cut_off(text, rest):
    assert after_think(text) == rest


@pytest.mark.parametrize(
    ("thought", "action"),
    [
        ("<think>It may be <answer>8</answer>.</think>", Action()),
        ("<think>It may be <answer>8</answer>.", Action()),
        (f"<think>I could write {CALL}</think>", Action()),
        (f"<think>I could write {CALL}", Action()),
        (f"<think>I could write {CALL}</think>\n<answer>7</answer>", Action(answer="7")),
        (f"<think>A <tool_call> comes next.</think>{CALL}", Action(calls=(ZOOM,))),
        (f"<think>\nNot <answer>8</answer>.</think>{CALL}", Action(calls=(ZOOM,))),
        ("<think>a <answer>", Action()),
        (
            f"<think>x</think>{CALL}<answer>7</answer>",
            Action(error="a turn may call a tool or give the answer, not both"),
        ),
    ],
)
def test_calls_and_answers_inside_a_thought_do_not_count(thought, action):
    assert parse_turn(thought, CODEC) == action


def test_a_boxed_answer_inside_a_thought_does_not_count():
    assert parse_turn("<think>\\boxed{8}</think>So \\boxed{7}", CODEC, "boxed") == Action(answer="7")
    assert parse_turn("<think>\\boxed{8}</think>So 7", CODEC, "boxed") == Action()
