"""Plays a strategy over many questions at once.

Questions whose next look is the same are played together; those that are decided leave. What a question is given does
not depend on the others: its random numbers are named by the question and the look. The same look is therefore sampled
alike under every strategy, and strategies compare in pairs.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mmrl.errors import ConfigError
from mmrl.protocols import RewardContext
from mmrl.rollout.episode import Prompt, Sampling
from mmrl.rollout.runner import Runner
from mmrl.rollout.seeds import derive_seed
from mmrl.scaling.strategy import Fields, Look, Round, Strategy, frames_shown
from mmrl.scoring import WeightedReward
from mmrl.types import Group, Sample, Score, Trajectory

Ready = Callable[[int, Fields], Prompt | None]
"""ready(number, fields): a question made ready, its media loaded by processors with these fields; None where it cannot
be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A decided question."""

    number: int
    sample: Sample
    rounds: tuple[Round, ...]
    winner: Trajectory
    """The trajectory whose answer is taken."""

    @property
    def answer(self) -> str | None:
        return self.winner.answer

    @property
    def frames(self) -> int:
        """Pictures shown, summed over rungs and samples."""
        return sum(r.frames for r in self.rounds)

    @property
    def tokens(self) -> int:
        """Tokens of prompts, answers and tool results, summed over rungs and samples."""
        return sum(r.tokens for r in self.rounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solver:
    """What stays the same from strategy to strategy."""

    runner: Runner
    ready: Ready
    seed: int
    batch_size: int
    """Episodes played at once; for each look of a strategy, media of about as many questions as that takes are held."""
    keep: int | None = None
    """Questions, from the first, whose outcomes keep their media; None is all."""
    rewards: Sequence[WeightedReward] = ()
    """Score the trajectories of the outcomes. Strategies do not see scores."""

    def solve(
        self, count: int, strategy: Strategy, on_outcome: Callable[[Outcome], None] = lambda outcome: None
    ) -> list[Outcome]:
        """Outcomes of the usable ones of the questions 0 .. count - 1, in order; `on_outcome` is told of each at once.

        A question that becomes unusable at a later look is decided by the looks before.
        """
        first = strategy.look(())
        if first is None:
            raise ConfigError(f"{type(strategy).__name__}: look(()) is None, but a strategy must look at least once")
        queue = [_Question(number, first) for number in range(count)]
        outcomes: dict[int, Outcome] = {}
        while queue:
            batch, queue = self._batch(queue)
            played = self._play(batch)
            for question in batch:
                group = played.get(question.number)
                if group is not None:
                    question.add(group)
                look = None if group is None else strategy.look(question.shown)
                if look is not None:  # behind the others, so that equal looks meet in full batches
                    question.ask(look)
                    queue.append(question)
                elif question.sample is not None:
                    keep = self.keep is None or question.number < self.keep
                    outcomes[question.number] = question.outcome(strategy, keep_media=keep)
                    on_outcome(outcomes[question.number])
        return [outcomes[number] for number in sorted(outcomes)]

    def _batch(self, queue: Sequence[_Question]) -> tuple[list[_Question], list[_Question]]:
        """(questions that want the same look, the others). What is begun goes on as soon as it fills a batch."""
        waiting = Counter(question.wants for question in queue if question.rounds)
        first = next((question for question in queue if waiting[question.wants] >= self._size(question)), queue[0])
        batch = [question for question in queue if question.wants == first.wants][: self._size(first)]
        chosen = {question.number for question in batch}
        return batch, [question for question in queue if question.number not in chosen]

    def _size(self, question: _Question) -> int:
        """Of a batch of such questions."""
        return max(1, self.batch_size // len(question.next.temperatures))

    def _play(self, batch: Sequence[_Question]) -> dict[int, Group]:
        """One group for each question that can be used."""
        look, wants = batch[0].next, batch[0].wants
        made = [self.ready(question.number, look.media) for question in batch]
        prompts = [prompt for prompt in made if prompt is not None]
        sampling = Sampling(temperature=look.temperatures, seed=derive_seed(self.seed, *wants))
        context = RewardContext(step=0, space=self.runner.family.space)
        groups = asyncio.run(self.runner.play(prompts, len(look.temperatures), sampling, self.rewards, context))
        return {prompt.row: group for prompt, group in zip(prompts, groups, strict=True)}


class _Question:
    """Where one question stands."""

    def __init__(self, number: int, look: Look) -> None:
        self.number = number
        self.sample: Sample | None = None
        self.rounds: tuple[Round, ...] = ()
        self.shown: tuple[Round, ...] = ()
        """The same as strategies see them: without scores."""
        self.ask(look)

    def ask(self, look: Look) -> None:
        self.next = look
        self.wants = (look.key, sum(r.look.key == look.key for r in self.rounds))
        """(the next look, how often this question was looked at so before)."""

    def add(self, group: Group) -> None:
        frames = sum(map(frames_shown, group.trajectories))
        played = Round(look=self.next, trajectories=group.trajectories, frames=frames)
        self.sample = group.sample
        self.rounds += (played,)
        self.shown += (replace(played, trajectories=tuple(map(_unscored, played.trajectories))),)

    def outcome(self, strategy: Strategy, *, keep_media: bool) -> Outcome:
        assert self.sample is not None
        taken = strategy.decide(self.shown)
        # Pixels of thousands of questions need not be held once these are decided.
        rounds = self.rounds if keep_media else tuple(map(_without_media, self.rounds))
        for played, shown in zip(rounds, self.shown, strict=True):
            for trajectory, twin in zip(played.trajectories, shown.trajectories, strict=True):
                if twin is taken:
                    return Outcome(number=self.number, sample=self.sample, rounds=rounds, winner=trajectory)
        raise ConfigError(f"{type(strategy).__name__}: decide must return one of the trajectories that it was given")


def _without_media(played: Round) -> Round:
    return replace(played, trajectories=tuple(replace(trajectory, media={}) for trajectory in played.trajectories))


def _unscored(trajectory: Trajectory) -> Trajectory:
    return replace(trajectory, scores={}, reward=Score.not_applicable("a strategy sees no scores"))
