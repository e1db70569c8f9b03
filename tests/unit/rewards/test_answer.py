"""An answer is compared by the rule that was asked for, whatever the model writes."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.protocols import RewardContext
from mmrl.rewards.answer import Exact, Letter, Number, letter, number
from mmrl.types import ScoreKind

RULES = [Exact(), Letter(), Number()]
GOLD = {Exact: "Tabby Cat", Letter: "B", Number: "1,234.5"}
WRONG = {Exact: "dog", Letter: "C", Number: "1,234.6"}


@pytest.mark.parametrize("rule", RULES)
def test_the_gold_answer_scores_one_and_a_wrong_one_zero(rule, score_one):
    gold = GOLD[type(rule)]
    assert score_one(rule, gold, answer=gold).value == 1.0
    assert score_one(rule, WRONG[type(rule)], answer=gold).value == 0.0


@pytest.mark.parametrize("rule", RULES)
def test_a_row_without_a_gold_answer_is_not_scored(rule, score_one):
    score = score_one(rule, "7")
    assert (score.kind, score.reason) == (ScoreKind.NOT_APPLICABLE, "the row has no gold answer")


@pytest.mark.parametrize("rule", RULES)
def test_no_answer_scores_zero_with_the_reason(rule, score_one):
    score = score_one(rule, None, answer=GOLD[type(rule)])
    assert (score.kind, score.value, score.reason) == (ScoreKind.VALUE, 0.0, "no answer")


@pytest.mark.parametrize("rule", RULES)
def test_no_turn_at_all_scores_zero(rule, score_one):
    assert score_one(rule, answer=GOLD[type(rule)]).value == 0.0


@pytest.mark.parametrize("rule", RULES)
def test_the_last_turn_answers(rule, score_one):
    gold, wrong = GOLD[type(rule)], WRONG[type(rule)]
    assert score_one(rule, wrong, gold, answer=gold).value == 1.0
    assert score_one(rule, gold, wrong, answer=gold).value == 0.0


@pytest.mark.parametrize("rule", RULES)
def test_every_sibling_is_scored_in_order(rule, make_trajectory, make_group):
    gold, wrong = GOLD[type(rule)], WRONG[type(rule)]
    group = make_group(*[make_trajectory(answer) for answer in (wrong, gold, None, gold)], answer=gold)
    scores = asyncio.run(rule.score(group, RewardContext(step=0)))
    assert [score.value for score in scores] == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("rule", "gold", "reason"),
    [
        (Letter(), "cat", "rows.jsonl row 3: gold answer 'cat' names no choice such as 'B'"),
        (Letter(), "", "rows.jsonl row 3: gold answer '' names no choice such as 'B'"),
        (Number(), "three", "rows.jsonl row 3: gold answer 'three' is not a number"),
        (Number(), "1/0", "rows.jsonl row 3: gold answer '1/0' is not a number"),
    ],
)
def test_a_gold_answer_that_the_rule_cannot_read_is_an_error_naming_the_row(rule, gold, reason, score_one):
    score = score_one(rule, "7", answer=gold)
    assert (score.kind, score.reason) == (ScoreKind.ERROR, reason)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("answer", ["9" * 1_000_000, "B " * 500_000, "<answer>" * 200_000, "1/" * 700_000])
def test_a_megabyte_of_answer_is_no_answer(rule, answer, score_one):
    score = score_one(rule, answer, answer=GOLD[type(rule)])
    assert (score.value, score.reason) == (0.0, "the answer is longer than 2000 characters")


HOSTILE = [
    "",
    " \n\t ",
    "\0",
    "\ud800",
    "\u202e7",
    "½",
    "²/4",
    "e999",
    "1e999",
    "-1e999",
    "1e999/2",
    "1/1e-999",
    "9" * 2000,
    "1/" * 900,
    "," * 2000,
    "1,111" * 400,
    "(" * 2000,
    "<answer>B</answer>",
    "nan",
    "inf",
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("answer", HOSTILE)
def test_a_hostile_answer_is_wrong_and_no_error(rule, answer, score_one):
    score = score_one(rule, answer, answer=GOLD[type(rule)])
    assert (score.kind, score.value) == (ScoreKind.VALUE, 0.0)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("0123456789.,+-/eE% ()ABab$٣²½\n")))
def test_any_text_is_read_or_refused_without_an_error(text):
    assert number(text) is None or isinstance(number(text), float)
    assert letter(text) is None or letter(text) in "ABE"


@pytest.mark.parametrize("answer", ["tabby cat", " Tabby\n  Cat ", "TABBY CAT"])
def test_exact_ignores_case_and_white_space(answer, score_one):
    assert score_one(Exact(), answer, answer="Tabby Cat").value == 1.0


@pytest.mark.parametrize("answer", ["tabbycat", "tabby cat.", "a tabby cat", "7"])
def test_exact_ignores_nothing_else(answer, score_one):
    assert score_one(Exact(), answer, answer="Tabby Cat").value == 0.0


def test_exact_folds_case_beyond_ascii(score_one):
    assert score_one(Exact(), "STRASSE", answer="Straße").value == 1.0


def test_exact_compares_numbers_as_text(score_one):
    assert score_one(Exact(), "7.0", answer="7").value == 0.0


@pytest.mark.parametrize("answer", ["B", "b", "(b)", "(B", "B.", "B) a cat", "b: a cat", " B. a cat"])
def test_letter_reads_the_choice_that_the_answer_opens_with(answer, score_one):
    assert score_one(Letter(), answer, answer="(B)").value == 1.0


@pytest.mark.parametrize("answer", ["C", "a cat", "B cat", "BC", "the answer is B", "", "2", "C. not B"])
def test_letter_reads_no_choice_in_a_sentence(answer, score_one):
    assert score_one(Letter(), answer, answer="B").value == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7.0),
        ("+7", 7.0),
        ("-7.25", -7.25),
        (".5", 0.5),
        ("5.", 5.0),
        ("1,234,567.5", 1234567.5),
        ("1,23", 1.0),
        ("3/4", 0.75),
        ("-3/4", -0.75),
        ("1,000/4", 250.0),
        ("3 / 4 cup", 0.75),
        ("12 %", 0.12),
        ("12%", 0.12),
        ("$5", 5.0),
        ("€ 5", 5.0),
        ("5 km", 5.0),
        ("5 km/h", 5.0),
        ("1e3", 1000.0),
        ("2.5E-3 m", 0.0025),
        ("٣", 3.0),
        ("1.5/2", 0.75),
        ("1/0", None),
        ("3/", None),
        ("--3", None),
        ("three", None),
        ("x7", None),
        ("e5", None),
        ("", None),
    ],
)
def test_number_reads_what_the_text_opens_with(text, value):
    assert number(text) == value


@pytest.mark.parametrize(("answer", "right"), [("10.1", 1.0), ("9.9", 1.0), ("10.2", 0.0), ("9.8", 0.0)])
def test_number_within_the_absolute_tolerance_is_right(answer, right, score_one):
    assert score_one(Number(absolute=0.15), answer, answer="10").value == right


@pytest.mark.parametrize(("answer", "right"), [("-104", 1.0), ("-96", 1.0), ("-106", 0.0), ("100", 0.0)])
def test_number_within_a_share_of_the_gold_is_right(answer, right, score_one):
    assert score_one(Number(relative=0.05), answer, answer="-100").value == right
