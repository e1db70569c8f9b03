"""Strategies played by a real tiny model."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image as Pillow

from mmrl.data.dataset import Loaded
from mmrl.errors import ConfigError
from mmrl.processors.image import Image
from mmrl.scaling.ladders import ResolutionLadder, SparseToDense
from mmrl.scaling.one_look import BestOfK, Greedy, Vote
from mmrl.scaling.run import Solver
from mmrl.scaling.strategy import frames_shown
from mmrl.scaling.votes import unanimous, votes_of
from mmrl.types import MediaSpan, Message, Part, Sample, Segment, Source

LADDER = SparseToDense(start=4, densest=16, samples=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToTheTop(SparseToDense):
    """Climbs every rung, whatever was answered."""

    def look(self, rounds):
        return super(SparseToDense, self).look([replace(r, trajectories=differing(r)) for r in rounds])


def differing(round_):
    first, second, *others = round_.trajectories
    return (
        *(replace(t, turns=(replace(t.turns[0], answer=name),)) for t, name in ((first, "x"), (second, "y"))),
        *others,
    )


def solver(runner, load, **options):
    def ready(number, fields):
        row = load(number, fields)
        return row and runner.prompt(row, number)

    return Solver(runner=runner, ready=ready, seed=7, **({"batch_size": 64} | options))


def played(outcomes):
    """What was sampled at each rung, by question."""
    return {o.number: [[t.segments[-1].ids for t in r.trajectories] for r in o.rounds] for o in outcomes}


def test_the_loop_follows_the_schedule(runner, ask, clip):
    load = ask("video", *range(12), processor=clip())
    outcomes = solver(runner, load).solve(12, LADDER)
    assert [outcome.number for outcome in outcomes] == list(range(12))
    for outcome in outcomes:
        *before, last = outcome.rounds
        assert not any(unanimous(r.trajectories) for r in before)
        assert unanimous(last.trajectories) or len(outcome.rounds) == 3
        votes = votes_of(last.trajectories)
        assert outcome.answer == max(votes, key=votes.count)
        assert [r.look.media["video"]["frames"] for r in outcome.rounds] == [4, 8, 16][: len(outcome.rounds)]
    assert len({len(outcome.rounds) for outcome in outcomes}) > 1  # some were sure sooner


def test_what_a_question_is_given_depends_on_no_other(runner, ask, clip):
    load = ask("video", *range(6), processor=clip())
    together = played(solver(runner, load).solve(6, LADDER))
    in_pieces = played(solver(runner, load, batch_size=4).solve(6, LADDER))
    alone = played(
        solver(runner, lambda number, fields: load(number, fields) if number == 4 else None).solve(6, LADDER)
    )
    assert together == in_pieces
    assert alone == {4: together[4]}


def test_the_densest_vote_draws_what_the_ladders_last_rung_draws(runner, ask, clip):
    load = ask("video", *range(6), processor=clip())
    ladder = solver(runner, load).solve(6, LADDER)
    dense = solver(runner, load).solve(6, replace(LADDER, start=16))
    climbed = [o for o in ladder if len(o.rounds) == 3]
    assert climbed
    for outcome in climbed:
        assert played([outcome])[outcome.number][-1] == played(dense)[outcome.number][0]
        assert outcome.answer == dense[outcome.number].answer


def test_equal_looks_at_one_question_are_sampled_anew(runner, ask, clip):
    @dataclass(frozen=True)
    class Again(Vote):
        def look(self, rounds):
            return super().look(()) if len(rounds) < 3 else None

    outcome = solver(runner, ask("video", 0, processor=clip())).solve(1, Again(samples=2))[0]
    drawn = [ids for rung in played([outcome])[0] for ids in rung]
    assert len(set(drawn)) == 6


def test_costs_by_hand(runner, ask, clip):
    """3 samples at 4, 8 and 16 frames of 56 x 56 pixels: two merged tokens a side, two frames a step."""
    outcome = solver(runner, ask("video", 0, processor=clip())).solve(1, ToTheTop(start=4, densest=16, samples=3))[0]
    assert [r.frames for r in outcome.rounds] == [12, 24, 48]
    assert outcome.frames == 84
    text = len(outcome.rounds[0].trajectories[0].segments[0].ids) - 4 * 4 // 2
    written = sum(t.num_model_tokens for r in outcome.rounds for t in r.trajectories)
    assert outcome.tokens == 9 * text + 3 * (8 + 16 + 32) + written


def test_images_and_what_tools_show_count_one_each(runner, picture):
    question = Message(role="user", parts=(Part(media=0), Part(media=1), Part(text="Which?")))
    loaded = Loaded(sample=Sample(id="s", messages=(question,)), media=(picture(0), picture(1)))
    outcome = solver(runner, lambda number, fields: loaded).solve(1, Vote(samples=4))[0]
    assert outcome.frames == 8
    trajectory = outcome.rounds[0].trajectories[0]
    span = MediaSpan(key="picture-0-56x56", start=0, length=1, grid=None)
    spread = (span, replace(span, start=1, offset=1))  # one picture in two spans, then the same one again
    crop = Segment(source=Source.OBSERVATION, ids=(1, 1, 1), spans=(*spread, replace(span, start=2)))
    assert frames_shown(replace(trajectory, segments=(*trajectory.segments, crop))) == 4


def test_no_moment_is_encoded_twice(runner, ask, clip):
    load = ask("video", *range(3), processor=clip())
    solver(runner, load).solve(3, ToTheTop(start=4, densest=16, samples=3))
    assert runner.engine.features.encoded == 3 * 16 // 2


def test_a_resolution_ladder_on_files(runner, ask, tmp_path):
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        Pillow.fromarray(pixels).save(tmp_path / f"{number}.png")
    load = ask("image", *(f"{n}.png" for n in range(4)), processor=Image(), root=str(tmp_path))
    ladder = ResolutionLadder(start_pixels=3136, max_pixels=50_176, samples=4)
    outcomes = solver(runner, load).solve(4, ladder)
    for outcome in outcomes:
        sizes = [medium.frame.seen for r in outcome.rounds for medium in r.trajectories[0].media.values()]
        assert sizes == [(56, 56), (112, 112), (224, 224)][: len(outcome.rounds)]
        assert outcome.frames == 4 * len(outcome.rounds)
    assert max(len(outcome.rounds) for outcome in outcomes) > 1


def test_a_bad_question_is_left_out_and_one_that_turns_bad_is_decided_on_what_was_seen(runner, ask, clip):
    load = ask("video", *range(3), processor=clip())

    def flaky(number, fields):
        bad = number == 0 or (number == 1 and fields["video"]["frames"] > 4)
        return None if bad else load(number, fields)

    told = []
    top = ToTheTop(start=4, densest=16, samples=3)
    outcomes = solver(runner, flaky).solve(3, top, told.append)
    assert [(o.number, len(o.rounds)) for o in outcomes] == [(1, 1), (2, 3)]
    assert sorted(o.number for o in told) == [1, 2]


def test_pixels_are_kept_only_where_they_are_wanted(runner, ask, clip):
    outcomes = solver(runner, ask("video", *range(3), processor=clip()), keep=1).solve(3, Greedy())
    assert [bool(o.winner.media) for o in outcomes] == [True, False, False]
    assert [o.frames for o in outcomes] == [4, 4, 4]


def brightness(trajectory):
    return float(sum(medium.data.mean() for medium in trajectory.media.values()))


def test_a_strategy_sees_the_media_of_questions_that_keep_none(runner, ask, clip):
    seen = []

    @dataclass(frozen=True)
    class Nosy(BestOfK):
        def decide(self, rounds):
            seen.append([brightness(t) for t in rounds[-1].trajectories])
            return super().decide(rounds)

    best = Nosy(samples=2, by=f"{__file__}:brightness")
    outcomes = solver(runner, ask("video", *range(3), processor=clip()), keep=0).solve(3, best)
    assert all(value > 0 for values in seen for value in values)
    assert not any(t.media for o in outcomes for r in o.rounds for t in (*r.trajectories, o.winner))


def test_few_questions_are_open_at_once(runner, ask, clip):
    """Batches of two questions on three rungs: what is begun is gone on with as soon as it fills a batch."""
    load, most, begun, done = ask("video", *range(12), processor=clip()), 0, set(), set()

    def noted(number, fields):
        nonlocal most
        begun.add(number)
        most = max(most, len(begun - done))
        return load(number, fields)

    top = ToTheTop(start=4, densest=16, samples=3)
    outcomes = solver(runner, noted, batch_size=6, keep=0).solve(12, top, lambda o: done.add(o.number))
    assert played(outcomes) == played(solver(runner, load).solve(12, top))
    assert most <= 6


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        (SparseToDense(), "changes how a video is loaded, but no dataclass loads one; see data.video"),
        (ResolutionLadder(start_pixels=4, max_pixels=8), "sets 'min_pixels' of data.image, but Clip has no such field"),
    ],
)
def test_a_look_that_no_processor_offers_is_one_line(runner, ask, clip, strategy, told):
    with pytest.raises(ConfigError, match=told):
        solver(runner, ask("image", "0", processor=clip())).solve(1, strategy)
