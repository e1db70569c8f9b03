"""Answers are compared as mathematics, and what cannot be compared in time costs its time limit only."""

import asyncio
import os
from pathlib import Path

import pytest

from mmrl.errors import ConfigError
from mmrl.protocols import RewardContext
from mmrl.resolve import build
from mmrl.rewards.math import MAX_CHARS, Math, _judge
from mmrl.types import ScoreKind

PATIENT = Math(timeout_s=120)
QUICK = 5.0
TOWER = "9^{9^{9^{9}}}"


@pytest.fixture(autouse=True, scope="module")
def judges():
    """Their processes are ended."""
    yield
    for timeout_s in (120.0, QUICK):
        _judge(timeout_s).worker.stop()


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1/2", "0.5"),
        (r"\frac{1}{2}", "0.5"),
        ("0.5", r"$\dfrac{2}{4}$"),
        (r"\frac{\sqrt{2}}{2}", r"1/\sqrt{2}"),
        ("1/sqrt(2)", r"\frac{\sqrt{2}}{2}"),
        ("(x+1)^2", "x^2 + 2x + 1"),
        ("2x+1", "1+2x"),
        (r"\{1, 2, 3\}", r"\{3, 1, 2\}"),
        ("[0, 1)", r"\left[0,1\right)"),
        (r"(-\infty, 2]", r"(-\infty,2]"),
        ("pi/2", r"\frac{\pi}{2}"),
        ("1,234", "1234"),
        ("-3", "$-3$"),
        ("7", "The answer is 7."),
        ("7", r"\boxed{7}"),
        ("7", "7 apples"),
        (r"x = 2", "2"),
        ("B", "B"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\ 2\end{pmatrix}"),
        ("1/3", "0.333333333"),
    ],
)
def test_what_is_equal_scores_one(gold, answer, score_one):
    score = score_one(PATIENT, answer, answer=gold)
    assert (score.kind, score.value) == (ScoreKind.VALUE, 1.0)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1/2", "1/3"),
        ("0.5", "0.51"),
        ("2x+1", "3x+1"),
        ("x", "y"),
        (r"\{1, 2\}", r"\{1, 3\}"),
        ("[0, 1)", "(0, 1]"),
        ("(1, 2)", "(2, 1)"),
        ("-3", "3"),
        ("7", "no idea"),
        ("7", "7, 8"),
        ("7", ""),
        ("7", "\ud800"),
        ("7", r"\frac{1}{"),
        ("7", r"\frac{1}{0}"),
        ("7", "__import__('os').system('true')"),
        ("B", "C"),
    ],
)
def test_what_is_not_scores_zero(gold, answer, score_one):
    score = score_one(PATIENT, answer, answer=gold)
    assert (score.kind, score.value) == (ScoreKind.VALUE, 0.0)


@pytest.mark.parametrize("gold", ["cat", "I do not know", "", "猫", r"\frac{1}{", "1" * (MAX_CHARS + 1)])
def test_a_gold_answer_that_is_no_mathematics_is_not_scored_whatever_the_answer(gold, score_one):
    for answer in (gold, "7", None):
        score = score_one(PATIENT, answer, answer=gold)
        assert (score.kind, score.reason) == (
            ScoreKind.NOT_APPLICABLE,
            "the gold answer cannot be read as mathematics",
        )


def test_a_row_without_a_gold_answer_is_not_scored(score_one):
    assert score_one(PATIENT, "7").reason == "the row has no gold answer"


def test_no_answer_and_one_that_is_too_long_score_zero(score_one):
    assert score_one(PATIENT, None, answer="7").reason == "no answer"
    long = score_one(PATIENT, "7" + " " * MAX_CHARS, answer="7")
    assert (long.value, long.reason) == (0.0, f"the answer is longer than {MAX_CHARS} characters")


@pytest.mark.parametrize(("gold", "answer"), [("7", TOWER), ("8", "10^{10^{10}}")])
def test_an_answer_that_hangs_scores_zero_and_the_next_is_compared(gold, answer, score_one):
    reward = Math(timeout_s=QUICK)
    score_one(reward, f"{gold}.0", answer=gold)
    worker = _judge(QUICK).worker
    before = worker.process.pid
    score = score_one(reward, answer, answer=gold)
    assert (score.kind, score.value, score.reason) == (ScoreKind.VALUE, 0.0, "took too long to compare")
    assert worker.process is None
    assert not Path(f"/proc/{before}").exists()
    assert score_one(reward, f"2*{gold}/2", answer=gold).value == 1.0
    assert worker.process.pid not in (before, os.getpid())


def test_what_was_compared_is_remembered(score_one):
    reward = Math(timeout_s=QUICK)
    score_one(reward, "0.25", answer="1/4")
    score_one(reward, TOWER, answer="1/4")
    worker = _judge(QUICK).worker
    assert worker.process is None  # killed with the tower
    assert score_one(reward, "0.25", answer="1/4").value == 1.0
    assert score_one(reward, TOWER, answer="1/4").value == 0.0
    assert worker.process is None  # nobody was asked


def test_every_sibling_is_scored_in_order(make_trajectory, make_group):
    group = make_group(*[make_trajectory(answer) for answer in ("2", "0.5", None, "1/2")], answer=r"\frac12")
    scores = asyncio.run(PATIENT.score(group, RewardContext(step=0)))
    assert [score.value for score in scores] == [0.0, 1.0, 0.0, 1.0]


def test_a_judge_that_dies_is_an_error_and_not_a_zero(score_one, monkeypatch):
    monkeypatch.setattr(_judge(QUICK).worker, "use", "os:abort")
    _judge(QUICK).worker.stop()
    score = score_one(Math(timeout_s=QUICK), "41", answer="42")
    _judge(QUICK).worker.stop()
    assert score.kind is ScoreKind.ERROR
    assert score.reason.startswith("rows.jsonl row 3: ")


def test_a_time_limit_must_be_one():
    with pytest.raises(ConfigError, match="timeout_s must be more than 0 seconds"):
        build("mmrl.rewards.math:Math", {"timeout_s": 0}, "rewards.0")
