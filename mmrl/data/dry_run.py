"""Trajectories that answer with the gold itself: what a perfect model could say about a row, for trying out rewards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from mmrl.data.dataset import Loaded
from mmrl.protocols import CoordinateSpace, RewardContext
from mmrl.rollout.parse import ANSWER_CLOSE, ANSWER_OPEN, BOXED, AnswerForm
from mmrl.scoring import WeightedReward, score_group
from mmrl.types import (
    Box,
    Gold,
    Group,
    Region,
    Score,
    ScoreKind,
    Segment,
    Source,
    StopReason,
    ToolCall,
    Trajectory,
    Turn,
)

THOUGHT = "<think>It is so.</think>"
CALL = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldScore:
    """What a reward gives a row's gold: the best over the forms in which it may be said."""

    value: float | None
    """None where the reward does not apply, or fails."""
    error: str = ""


async def score_gold(
    loaded: Loaded, rewards: Sequence[WeightedReward], context: RewardContext, answer_form: AnswerForm = "tag"
) -> dict[str, GoldScore]:
    """Each reward, run once on the group of all `perfect` trajectories."""
    group = Group(sample=loaded.sample, trajectories=tuple(perfect(loaded, context.space, answer_form)))
    scored = await score_group(group, rewards, context)
    return {term.name: _best([t.scores[term.name] for t in scored.trajectories]) for term in rewards}


def perfect(loaded: Loaded, space: CoordinateSpace, answer_form: AnswerForm = "tag") -> list[Trajectory]:
    """Every form of the gold as an answer, with and without a thought, with and without a call that looked there."""
    looks = [False, True] if loaded.media and _places(loaded.sample.gold) else [False]
    forms = [
        (answer, thought, look) for answer in _answers(loaded, space) for thought in ("", THOUGHT) for look in looks
    ]
    return [_trajectory(loaded, index, answer_form, *form) for index, form in enumerate(forms)]


def _best(scores: Sequence[Score]) -> GoldScore:
    values = [score.value for score in scores if score.kind is ScoreKind.VALUE]
    if values:
        return GoldScore(value=max(values))
    return GoldScore(value=None, error=next((s.reason for s in scores if s.kind is ScoreKind.ERROR), ""))


def _answers(loaded: Loaded, space: CoordinateSpace) -> list[str]:
    gold = loaded.sample.gold
    answers = [] if gold.answer is None else [gold.answer]
    if loaded.media and _places(gold):
        frame = loaded.media[0].frame

        def spoken(box: Box) -> list[float]:
            return list(space.from_seen(frame.to_seen(box), frame))

        answers += [
            json.dumps(places)
            for places in (
                [{"bbox_2d": spoken(box)} for box in gold.boxes],
                [{"point_2d": spoken((x, y, x, y))[:2]} for x, y in gold.points],
                [{"start": start, "end": end} for start, end in gold.spans],
                [{"time": time, "bbox_2d": spoken(box)} for time, box in gold.track],
            )
            if places
        ]
    return answers or [""]


def _places(gold: Gold) -> bool:
    return bool(gold.boxes or gold.points or gold.spans or gold.track)


def _trajectory(
    loaded: Loaded, index: int, answer_form: AnswerForm, answer: str, thought: str, look: bool
) -> Trajectory:
    marked = f"{BOXED}{answer}}}" if answer_form == "boxed" else f"{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"
    last = Turn(segment=0, text=f"{thought}{marked}", answer=answer)
    turns = [last]
    if look:
        call = ToolCall(name="look", arguments={})
        first = Turn(segment=0, text=f"{thought}{CALL}", calls=(call,), regions=_regions(loaded))
        turns = [first, Turn(segment=1, text=last.text, answer=answer)]
    return Trajectory(
        sample_id=loaded.sample.id,
        index=index,
        segments=tuple(Segment(source=Source.MODEL, ids=()) for _ in turns),
        turns=tuple(turns),
        stop=StopReason.ANSWERED,
        media={medium.key: medium for medium in loaded.media},
    )


def _regions(loaded: Loaded) -> tuple[Region, ...]:
    gold, key = loaded.sample.gold, loaded.media[0].key
    points = [Region(on=key, box=(x - 0.5, y - 0.5, x + 0.5, y + 0.5)) for x, y in gold.points]
    times = [Region(on=key, times=(time,), box=box) for time, box in gold.track]
    spans = [Region(on=key, span=span) for span in gold.spans]
    return (*[Region(on=key, box=box) for box in gold.boxes], *points, *times, *spans)
