"""Fixed turns before free ones, and what follows a limit: the rules of MGPO, VRAG and ViGoRL."""

import asyncio

import pytest

from mmrl.models.text import encode_text
from mmrl.protocols import Completion
from mmrl.rollout.episode import Episode, Limits, Prompt, Rules, Sampling
from mmrl.rollout.parse import find_boxed
from mmrl.rollout.script import Step, fenced_blocks
from mmrl.rollout.toolbox import Toolbox
from mmrl.tools.zoom import Zoom
from mmrl.types import Message, Part, Sample, Source, StopReason

BOX = '```json\n[{"bbox_2d": [28, 28, 84, 84], "label": "sign"}]\n```'
MGPO = Rules(
    script=(
        Step(
            tool="zoom",
            then="Here it is: <media>\n{question} Box the letter.",
            otherwise="Not valid. <media>{question}",
        ),
    ),
    answer_form="boxed",
)
FREE = Rules()
LIMITS = {"max_turns": 4, "max_calls": 4, "max_calls_per_turn": 1, "max_media": 8, "max_context": 4096}
CALL = '<tool_call>\n{"name": "zoom", "arguments": {"bbox_2d": [0, 0, 28, 28]}}\n</tool_call>'


class Scripted:
    """Implements RolloutEngine: writes given texts, ends them at the first stop string, and notes the requests."""

    def __init__(self, family, turns):
        self.family, self.turns, self.requests = family, list(turns), []

    def open(self, episode): ...

    def release(self, episode): ...

    async def generate(self, request):
        self.requests.append(request)
        text, stopped = self.turns.pop(0), False
        for stop in request.stop:
            before, found, _ = text.partition(stop)
            text, stopped = (before + found, True) if found else (text, stopped)
        ids = encode_text(self.family.tokenizer, text) + ([] if stopped else list(self.family.eos_ids))
        return Completion(ids=tuple(ids), logprobs=(-1.0,) * len(ids), version=0, stopped=True)


@pytest.fixture
def play(checkpoint, picture):
    """play("turn", ..., rules=, prefix=, limit=value) is (trajectory, engine)."""
    family = checkpoint.family

    def run(*turns, rules=FREE, prefix="", **limits):
        medium = picture(0, 112, 112)
        message = Message(role="user", parts=(Part(media=0), Part(text="Which?")))
        prompt = Prompt(
            sample=Sample(id="s", messages=(message,)),
            media=(medium,),
            tokens=family.encode_prompt([message], [medium], ()),
            row=0,
            use_tools=True,
        )
        engine = Scripted(family, turns)
        episode = Episode(
            prompt,
            0,
            engine=engine,
            family=family,
            toolbox=Toolbox([Zoom(name="zoom")], error_chars=200),
            limits=Limits(**(LIMITS | {"max_turn_tokens": 200} | limits), final_prefix=family.encode_text(prefix)),
            sampling=Sampling(temperature=1.0, seed=0),
            rules=rules,
        )
        return asyncio.run(episode.run()), engine

    return run


def texts(trajectory, checkpoint):
    """(source, text without media) of every segment."""
    decode = checkpoint.family.tokenizer.decode
    return [(s.source, decode(s.ids).replace("<|image_pad|>", "")) for s in trajectory.segments]


def test_a_valid_box_is_cut_from_the_original_and_shown_with_the_question(play, checkpoint):
    trajectory, engine = play(BOX + " and more", "It is \\boxed{B}", rules=MGPO)
    assert trajectory.stop is StopReason.ANSWERED
    assert trajectory.answer == "B"
    assert trajectory.turns[0].text == BOX  # the turn ends with its block
    assert trajectory.turns[0].regions[0].box == (28.0, 28.0, 84.0, 84.0)
    (source, said) = texts(trajectory, checkpoint)[2]
    assert source is Source.OBSERVATION
    assert said == (
        "<|im_end|>\n<|im_start|>user\nHere it is: <|vision_start|><|vision_end|>\nWhich? Box the letter.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert len(trajectory.media) == 2
    assert engine.requests[0].stop == ("]\n```",)
    assert engine.requests[1].stop == ()


@pytest.mark.parametrize(
    "turn",
    [
        "I see nothing.",
        '```json\n[{"bbox_2d": [84, 84, 28, 28]}]\n```',
        '```json\n[{"bbox_2d": [0, 0, 1, 1]}, {"bbox_2d": [0, 0, 9, 9]}]\n```',
        "```json\n[[[[",
        '```json\n{"bbox_2d": [NaN, 0, 5, 5]}\n```',
    ],
)
def test_a_turn_without_a_valid_box_is_followed_by_the_whole_image(play, checkpoint, turn):
    trajectory, engine = play(turn, "\\boxed{A}", rules=MGPO)
    assert trajectory.answer == "A"
    assert trajectory.turns[0].error
    assert "Not valid. <|vision_start|><|vision_end|>Which?" in texts(trajectory, checkpoint)[2][1]
    assert len(trajectory.media) == 1  # the image is the one that was there
    assert engine.requests[1].media[0].key == next(iter(trajectory.media))
    assert len(trajectory.segments[2].spans) == 1


def test_both_turns_of_the_script_are_the_models_and_nothing_else_is(play):
    trajectory, _ = play(BOX, "\\boxed{B}", rules=MGPO)
    sources = [segment.source for segment in trajectory.segments]
    assert sources == [Source.PROMPT, Source.MODEL, Source.OBSERVATION, Source.MODEL]
    assert all(segment.logprobs for segment in trajectory.segments if segment.source is Source.MODEL)


def test_one_more_turn_without_calls_follows_a_limit(play, checkpoint):
    trajectory, _ = play(CALL, CALL, "<answer>7</answer>", max_turns=2, final_message="Answer now.")
    assert trajectory.stop is StopReason.ANSWERED
    assert trajectory.answer == "7"
    assert len(trajectory.media) == 2  # the second call was not run
    assert texts(trajectory, checkpoint)[4] == (
        Source.OBSERVATION,
        "\n<|im_start|>user\nAnswer now.<|im_end|>\n<|im_start|>assistant\n",
    )


@pytest.mark.parametrize(
    ("limits", "stop"),
    [
        ({"max_turns": 1}, StopReason.MAX_TURNS),
        ({"max_calls": 0}, StopReason.TOOL_BUDGET),
        ({"max_media": 1}, StopReason.MEDIA_BUDGET),
    ],
)
def test_a_call_in_the_last_turn_of_all_ends_the_episode_by_its_limit(play, limits, stop):
    trajectory, engine = play(CALL, CALL, final_message="Answer now.", **limits)
    assert trajectory.stop is stop
    assert len(engine.requests) == 2


def test_the_turn_after_a_limit_opens_with_the_prefix_which_is_masked(play, checkpoint):
    trajectory, _ = play(CALL, "7</answer>", max_turns=1, final_message="Answer now.", prefix="<answer>")
    assert trajectory.answer == "7"
    assert texts(trajectory, checkpoint)[3] == (Source.INJECTED, "<answer>")


def test_stop_strings_end_a_turn_which_is_then_closed(play, checkpoint):
    trajectory, _ = play(
        CALL + "<answer>1</answer>", "<answer>7</answer>", rules=Rules(stop=("</tool_call>", "</answer>"))
    )
    assert trajectory.answer == "7"
    assert trajectory.turns[0].text == CALL
    assert texts(trajectory, checkpoint)[2][1].startswith("<|im_end|>\n<|im_start|>user\n<tool_response>")


def test_an_error_may_be_followed_by_the_first_image_again(play, checkpoint):
    bad = CALL.replace("[0, 0, 28, 28]", "[9, 9, 3, 3]")
    trajectory, _ = play(bad, "<answer>7</answer>", rules=Rules(on_error="image"))
    said = texts(trajectory, checkpoint)[2][1]
    assert "Error: bbox_2d" in said
    assert "<|vision_start|><|vision_end|>" in said


def test_the_engine_stops_at_a_stop_string(checkpoint):
    """Whatever the random model writes: a turn ends right behind the first stop string, and not before."""
    from mmrl.cache.features import FeatureCache
    from mmrl.protocols import Request
    from mmrl.rollout.engine_hf import HFEngine
    from mmrl.types import Tokens

    family, model = checkpoint.family, checkpoint.model
    engine = HFEngine(model, family, FeatureCache(model, family), batch_size=4, deterministic=True)

    def write(stop):
        request = Request(
            episode="e",
            group="g",
            order=(0, 0),
            new=Tokens(ids=family.encode_text("Which?")),
            media=(),
            seed=3,
            max_tokens=24,
            temperature=1.0,
            stop=stop,
        )
        engine.open("e", "0")
        (completion,) = engine.decode([request])
        engine.release("e")
        return completion

    free = write(())
    stop = family.decode(free.ids[:9])[-2:]
    first = next(n for n in range(1, 25) if stop in family.decode(free.ids[:n]))
    stopped = write(("never written", stop))
    assert stopped.ids == free.ids[:first]
    assert stopped.stopped


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{B}.", "B"),
        ("\\boxed{1} no, \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{open", None),
        ("none", None),
        ("\\boxed{" * 20000, None),
    ],
)
def test_the_last_complete_box_is_the_answer(text, answer):
    assert find_boxed(text) == answer


def test_blocks_are_found_in_one_pass():
    assert fenced_blocks("a```json[1]```b```json\n{}\n```c```json 3") == ["[1]", "\n{}\n"]
    assert fenced_blocks("```json" * 50000) == [""] * 25000


def test_media_are_numbered_as_the_model_sees_them(play, checkpoint):
    """The first image, the same crop twice, another crop: image 3 is the other crop."""
    other = CALL.replace("[0, 0, 28, 28]", "[28, 28, 84, 84]")
    of_three = CALL.replace("28]", '28], "image": 3')
    trajectory, _ = play(CALL, CALL, other, of_three, "<answer>7</answer>", max_turns=5)
    crops = [turn.results[0] for turn in trajectory.turns[:3]]
    assert crops[0] == crops[1] != crops[2]
    assert list(trajectory.media)[1:3] == [crops[0], crops[2]]  # in order, the first one being the prompt's
    assert trajectory.turns[0].regions[0].on == next(iter(trajectory.media))
    assert trajectory.turns[3].regions[0].on == crops[2]


@pytest.mark.parametrize(("limit", "stop"), [("max_calls", "tool_budget"), ("max_media", "media_budget")])
def test_fixed_turns_keep_to_the_limits(play, limit, stop):
    rules = Rules(script=MGPO.script * 3, answer_form="boxed")
    trajectory, _ = play(BOX, BOX, BOX, "\\boxed{B}", rules=rules, **{limit: 2})
    assert trajectory.stop == stop
    assert len(trajectory.turns) < 4
