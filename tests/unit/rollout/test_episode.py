"""The rules of an episode, one per test, with a scripted engine."""

import asyncio

import pytest

from mmrl.models.text import encode_text
from mmrl.protocols import Completion
from mmrl.rollout.episode import Episode, Limits, Prompt, Sampling
from mmrl.rollout.toolbox import Toolbox
from mmrl.tools.zoom import Zoom
from mmrl.types import Message, Part, Sample, Source, StopReason

LIMITS = {
    "max_turns": 4,
    "max_calls": 4,
    "max_calls_per_turn": 1,
    "max_media": 8,
    "max_context": 4096,
    "max_turn_tokens": 200,
}
TOOLS = (Zoom(),)
ZOOM = '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 28, 28]}}\n</tool_call>'
NESTED = ZOOM.replace("28]", '28], "image": 1')
ANSWER = "<answer>7</answer>"


class Script:
    """Implements RolloutEngine: gives the texts of a script, and notes what it was asked."""

    def __init__(self, family, turns):
        self.family, self.turns = family, list(turns)
        self.requests, self.released = [], []

    def open(self, episode): ...

    def release(self, episode):
        self.released.append(episode)

    async def generate(self, request):
        self.requests.append(request)
        turn = self.turns.pop(0)
        if isinstance(turn, Exception):
            raise turn
        ids = [*encode_text(self.family.tokenizer, turn), *self.family.eos_ids][: request.max_tokens]
        return Completion(
            ids=tuple(ids), logprobs=(-1.0,) * len(ids), version=3, stopped=ids[-1] in self.family.eos_ids
        )


@pytest.fixture
def play(checkpoint, picture):
    """play("turn", ..., limit=value) is (trajectory, engine)."""
    family = checkpoint.family

    def run(*turns, tools=TOOLS, error_chars=200, prefix="", **limits):
        medium = picture(0, 112, 112)
        message = Message(role="user", parts=(Part(media=0), Part(text="Which?")))
        prompt = Prompt(
            sample=Sample(id="s", messages=(message,)),
            media=(medium,),
            tokens=family.encode_prompt([message], [medium], tools),
            row=5,
            use_tools=True,
        )
        engine = Script(family, turns)
        episode = Episode(
            prompt,
            2,
            engine=engine,
            family=family,
            toolbox=Toolbox(tools, error_chars=error_chars),
            limits=Limits(**(LIMITS | limits), final_prefix=family.encode_text(prefix)),
            sampling=Sampling(temperature=1.0, seed=11),
        )
        return asyncio.run(episode.run()), engine

    return run


def sources(trajectory):
    return [segment.source.value for segment in trajectory.segments]


def test_01_an_answer_ends_the_episode(play):
    trajectory, _ = play(ANSWER, "never asked for")
    assert (trajectory.stop, trajectory.answer) == (StopReason.ANSWERED, "7")
    assert sources(trajectory) == ["prompt", "model"]


def test_02_a_call_is_answered_with_its_result_and_the_episode_goes_on(play):
    trajectory, _ = play(ZOOM, ANSWER)
    assert trajectory.stop is StopReason.ANSWERED
    assert sources(trajectory) == ["prompt", "model", "observation", "model"]
    assert trajectory.turns[0].regions[0].box == (0, 0, 28, 28)
    assert trajectory.turns[0].results[0] in trajectory.media
    assert len(trajectory.segments[2].spans) == 1


def test_03_the_engine_is_sent_only_what_was_appended_since_its_last_turn(play):
    trajectory, engine = play(ZOOM, ANSWER)
    first, second = engine.requests
    assert first.new.ids == trajectory.segments[0].ids
    assert second.new.ids == trajectory.segments[2].ids
    assert [medium.key for medium in second.media] == list(trajectory.turns[0].results)


def test_04_segments_hold_exactly_the_sampled_ids_with_their_log_probs_and_version(play, checkpoint):
    trajectory, _ = play(ANSWER)
    segment = trajectory.segments[1]
    assert checkpoint.family.decode(segment.ids) == ANSWER
    assert segment.ids[-1] == checkpoint.family.eos_ids[0]
    assert len(segment.logprobs) == len(segment.ids)
    assert segment.version == 3
    assert trajectory.segments[0].logprobs == ()


def test_05_neither_a_call_nor_an_answer_is_a_parse_failure(play):
    trajectory, _ = play("I wonder.")
    assert (trajectory.stop, trajectory.answer) == (StopReason.PARSE_FAILED, None)


def test_06_a_malformed_call_is_answered_with_an_error_and_the_episode_goes_on(play, checkpoint):
    trajectory, _ = play("<tool_call>{</tool_call>", ANSWER)
    assert trajectory.stop is StopReason.ANSWERED
    assert "not valid JSON" in trajectory.turns[0].error
    assert "Error: the call is not valid JSON" in checkpoint.family.decode(trajectory.segments[2].ids)


def test_07_a_refused_call_is_answered_with_the_tools_words(play, checkpoint):
    trajectory, _ = play(ZOOM.replace("28, 28", "28, 900").replace("[0, 0", "[500, 500"), ANSWER)
    assert trajectory.stop is StopReason.ANSWERED
    assert trajectory.turns[0].error in checkpoint.family.decode(trajectory.segments[2].ids)
    assert trajectory.turns[0].results == ()


def test_08_an_error_text_is_bounded(play):
    trajectory, _ = play("<tool_call>" + "x" * 100 + "</tool_call>", ANSWER, error_chars=30)
    assert len(trajectory.turns[0].error) == 30


def test_09_a_turn_that_calls_and_answers_is_malformed(play):
    trajectory, _ = play(ZOOM + ANSWER, ANSWER)
    assert "not both" in trajectory.turns[0].error
    assert trajectory.turns[0].calls == ()


def test_10_more_calls_in_a_turn_than_allowed_are_not_run(play):
    trajectory, _ = play(ZOOM + ZOOM, ANSWER)
    assert "at most 1 call(s)" in trajectory.turns[0].error
    assert len(trajectory.media) == 1


def test_11_several_calls_of_a_turn_share_one_observation(play):
    trajectory, _ = play(ZOOM + ZOOM.replace("28]", "56]"), ANSWER, max_calls_per_turn=2)
    assert sources(trajectory) == ["prompt", "model", "observation", "model"]
    assert len(trajectory.segments[2].spans) == 2


def test_12_a_later_call_may_refer_to_an_earlier_result(play):
    trajectory, _ = play(ZOOM, NESTED, ANSWER)
    assert trajectory.turns[1].error is None
    assert trajectory.turns[1].regions[0].on == trajectory.turns[0].results[0]


def test_13_the_last_turn_that_the_limit_allows_may_not_call(play):
    trajectory, engine = play(ZOOM, ZOOM, "never", max_turns=2)
    assert trajectory.stop is StopReason.MAX_TURNS
    assert len(engine.requests) == 2
    assert sources(trajectory)[-1] == "model"


def test_14_the_call_after_the_last_allowed_one_ends_the_episode(play):
    trajectory, _ = play(ZOOM, ZOOM, "never", max_calls=1)
    assert trajectory.stop is StopReason.TOOL_BUDGET
    assert len(trajectory.media) == 2


def test_15_malformed_calls_count_against_the_budget(play):
    trajectory, _ = play("<tool_call>{</tool_call>", "<tool_call>{</tool_call>", max_calls=1)
    assert trajectory.stop is StopReason.TOOL_BUDGET


def test_16_a_result_beyond_the_image_limit_ends_the_episode_and_is_not_appended(play):
    trajectory, _ = play(ZOOM, max_media=1)
    assert trajectory.stop is StopReason.MEDIA_BUDGET
    assert sources(trajectory) == ["prompt", "model"]


def test_17_a_turn_that_runs_into_its_limit_ends_the_episode(play):
    trajectory, _ = play("w " * 50, max_turn_tokens=20)
    assert trajectory.stop is StopReason.MAX_TOKENS
    assert len(trajectory.segments[1].ids) == 20


def test_18_a_result_that_does_not_fit_the_context_ends_the_episode_and_is_not_appended(play):
    whole, _ = play(ZOOM, ANSWER)
    lengths = [len(segment.ids) for segment in whole.segments]
    trajectory, _ = play(ZOOM, max_context=sum(lengths[:3]))  # no room for a token after the result
    assert trajectory.stop is StopReason.CONTEXT_FULL
    assert sources(trajectory) == ["prompt", "model"]


def test_19_a_turn_never_exceeds_the_room_left_in_the_context(play):
    _, engine = play(ANSWER)
    prompt = len(engine.requests[0].new.ids)
    trajectory, engine = play("w " * 50, max_context=prompt + 7)
    assert engine.requests[0].max_tokens == 7
    assert trajectory.stop is StopReason.CONTEXT_FULL


def test_20_a_prompt_that_fills_the_context_is_not_played(play):
    trajectory, engine = play(ANSWER, max_context=10)
    assert trajectory.stop is StopReason.CONTEXT_FULL
    assert engine.requests == []


def test_21_an_engine_failure_costs_the_episode_and_is_told(play):
    trajectory, _ = play(RuntimeError("out of memory"))
    assert trajectory.stop is StopReason.ENGINE_ERROR
    assert "out of memory" in trajectory.turns[-1].error


@pytest.mark.parametrize("turns", [(ANSWER,), (RuntimeError("x"),), ("I wonder.",)])
def test_22_an_episode_is_released_once_however_it_ends(play, turns):
    _, engine = play(*turns)
    assert engine.released == ["5/2"]


def test_23_the_last_turn_opens_with_the_final_prefix_which_is_not_the_models(play, checkpoint):
    trajectory, engine = play(ZOOM, "7</answer>", max_turns=2, prefix="<answer>")
    assert (trajectory.stop, trajectory.answer) == (StopReason.ANSWERED, "7")
    assert sources(trajectory) == ["prompt", "model", "observation", "injected", "model"]
    assert engine.requests[1].new.ids == trajectory.segments[2].ids + trajectory.segments[3].ids
    model = [segment for segment in trajectory.segments if segment.source is Source.MODEL]
    assert checkpoint.family.decode(model[1].ids) == "7</answer>"


def test_24_random_streams_differ_by_turn_and_are_named_by_row_and_sibling(play):
    _, engine = play(ZOOM, ANSWER)
    _, again = play(ZOOM, ANSWER)
    seeds = [request.seed for request in engine.requests]
    assert seeds[0] != seeds[1]
    assert seeds == [request.seed for request in again.requests]
    assert engine.requests[0].order == (5, 2)


def test_25_without_tools_a_call_is_refused(play):
    trajectory, _ = play(ZOOM, ANSWER, tools=())
    assert "the tools are: none" in trajectory.turns[0].error
