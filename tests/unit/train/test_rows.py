from dataclasses import replace

import numpy as np

from mmrl.train.rows import TurnTargets, build_row, sampled_logprobs, written_turns
from mmrl.types import Media, MediaSpan, Segment, Source, StopReason, Trajectory


def trajectory(*segments):
    return Trajectory(sample_id="s", index=0, segments=segments, turns=(), stop=StopReason.ANSWERED)


EPISODE = trajectory(
    Segment(
        source=Source.PROMPT, ids=(1, 2, 90, 90, 3), spans=(MediaSpan(key="a", start=2, length=2, grid=(1, 1, 2)),)
    ),
    Segment(source=Source.MODEL, ids=(10, 11), logprobs=(-0.1, -0.2)),
    Segment(source=Source.OBSERVATION, ids=(90, 4), spans=(MediaSpan(key="b", start=0, length=1, grid=(1, 1, 1)),)),
    Segment(source=Source.INJECTED, ids=(5,)),
    Segment(source=Source.MODEL, ids=(12,), logprobs=(-0.3,)),
)


def test_targets_are_exactly_the_ids_that_the_model_wrote(checkpoint):
    row = build_row(EPISODE, checkpoint.family)
    assert row.ids_T.tolist() == [1, 2, 90, 90, 3, 10, 11, 90, 4, 5, 12]
    assert row.target_N.tolist() == [10, 11, 12]
    assert row.source_N.tolist() == [4, 5, 9]
    assert sampled_logprobs([EPISODE, EPISODE]).tolist() == [-0.1, -0.2, -0.3] * 2


def test_spans_count_from_the_start_of_the_row(checkpoint):
    row = build_row(EPISODE, checkpoint.family)
    assert [(span.key, span.start) for span in row.spans] == [("a", 2), ("b", 7)]
    assert (row.positions_3T == checkpoint.family.positions(row_tokens(row))).all()


def row_tokens(row):
    from mmrl.types import Tokens

    return Tokens(ids=tuple(int(i) for i in row.ids_T), spans=row.spans)


def test_a_trajectory_whose_every_id_is_the_models_has_no_source_before_its_start(checkpoint):
    row = build_row(trajectory(EPISODE.segments[0], EPISODE.segments[1]), checkpoint.family)
    assert np.all(row.source_N >= 0)


def medium(kind, key):
    return Media(kind=kind, key=key, data=np.zeros(1, np.float32))


def test_every_turn_knows_the_media_before_it_its_number_and_its_policy():
    def written(length, version):
        return Segment(source=Source.MODEL, ids=(10,) * length, logprobs=(-0.1,) * length, version=version)

    def shown(source, *keys):
        spans = tuple(MediaSpan(key=key, start=n, length=1, grid=None) for n, key in enumerate(keys))
        return Segment(source=source, ids=(90,) * len(keys) + (1,), spans=spans)

    segments = (
        shown(Source.PROMPT),
        written(2, 3),
        shown(Source.OBSERVATION, "i"),
        written(0, 3),
        shown(Source.OBSERVATION, "v", "a"),
        shown(Source.INJECTED),
        written(4, 4),
        shown(Source.OBSERVATION, "i"),
    )
    media = {m.key: m for m in (medium("image", "i"), medium("video", "v"), medium("audio", "a"))}
    episode = replace(trajectory(*segments), media=media)
    turns = written_turns([episode, episode])
    assert turns[:2] == [
        TurnTargets(length=2, turn=1, kinds=frozenset({"text"}), version=3),
        TurnTargets(length=4, turn=3, kinds=frozenset({"image", "video", "audio"}), version=4),
    ]
    assert turns[2:] == turns[:2]
