"""One episode: model turns and tool results in turn, until an answer or a limit.

The semantics are numbered and locked by tests/unit/rollout/test_episode.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mmrl.protocols import Completion, ModelFamily, Request, RolloutEngine, ToolError, ToolState
from mmrl.rollout.parse import Action, AnswerForm, parse_turn
from mmrl.rollout.script import Step, filled
from mmrl.rollout.seeds import derive_seed
from mmrl.rollout.toolbox import Toolbox
from mmrl.types import (
    Media,
    Message,
    Part,
    Region,
    Sample,
    Segment,
    Source,
    StopReason,
    Tokens,
    ToolCall,
    Trajectory,
    Turn,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an episode may use."""

    max_turns: int
    max_calls: int
    """Tool calls in an episode, malformed ones included."""
    max_calls_per_turn: int
    max_media: int
    """Media in an episode, the prompt's included."""
    max_context: int
    """Tokens in an episode."""
    max_turn_tokens: int
    """Tokens in a model turn."""
    final_prefix: tuple[int, ...] = ()
    """Ids that are put at the start of the last turn that the limits allow; not trained on."""
    final_message: str = ""
    """What the user says when a limit on turns, calls or media is met: one more turn follows, in which nothing is
    called. Empty: the episode ends there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How turns are read and what follows them."""

    script: tuple[Step, ...] = ()
    """What the first turns are for; the turns behind it are free."""
    stop: tuple[str, ...] = ()
    """Strings that end a turn, beside the end token."""
    answer_form: AnswerForm = "tag"
    on_error: Literal["text", "image"] = "text"
    """What follows a call that cannot be met: the error, or the error and the first image again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A sample made ready for its group: encoded once, shared by all siblings."""

    sample: Sample
    media: tuple[Media, ...]
    tokens: Tokens
    row: int
    """Place in the batch: engines form batches in this order."""
    use_tools: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    temperature: float | tuple[float, ...]
    """0 is greedy; a tuple gives each sibling its own."""
    seed: int
    """Names the random streams of this batch, together with row, sibling and turn."""

    def temperature_of(self, sibling: int) -> float:
        return self.temperature[sibling] if isinstance(self.temperature, tuple) else self.temperature


class Episode:
    """Plays one sibling of a prompt; single use."""

    def __init__(
        self,
        prompt: Prompt,
        sibling: int,
        *,
        engine: RolloutEngine,
        family: ModelFamily,
        toolbox: Toolbox,
        limits: Limits,
        sampling: Sampling,
        rules: Rules = Rules(),  # noqa: B008 (frozen)
    ) -> None:
        self.prompt, self.sibling = prompt, sibling
        self.engine, self.family, self.toolbox = engine, family, toolbox
        self.limits, self.sampling, self.rules = limits, sampling, rules
        self.name = f"{prompt.row}/{sibling}"
        self.media: list[Media] = list(prompt.media)
        """In the order in which the model sees them, one that is shown again as often."""
        self.segments = [Segment(source=Source.PROMPT, ids=prompt.tokens.ids, spans=prompt.tokens.spans)]
        self.turns: list[Turn] = []
        self.unsent = prompt.tokens
        self.unsent_media = prompt.media
        self.num_tokens = len(prompt.tokens.ids)
        self.num_calls = 0
        self.met: StopReason | None = None
        """The limit after which one more turn was asked for."""

    async def run(self) -> Trajectory:
        """Play until the episode stops. An engine failure ends it with ENGINE_ERROR."""
        stop = None
        try:
            while stop is None:
                stop = await self._turn()
        except Exception as error:  # the one place where an engine or a tool may fail: it costs this episode
            stop = StopReason.ENGINE_ERROR
            self._note_error(error)
        finally:
            self.engine.release(self.name)
        return Trajectory(
            sample_id=self.prompt.sample.id,
            index=self.sibling,
            segments=tuple(self.segments),
            turns=tuple(self.turns),
            stop=stop,
            media=self._media_by_key(),
        )

    def _media_by_key(self) -> dict[str, Media]:
        """In the order in which they were first shown; one that was shown again is the one shown first."""
        media: dict[str, Media] = {}
        for medium in self.media:
            media.setdefault(medium.key, medium)
        return media

    async def _turn(self) -> StopReason | None:
        """One model turn and, where the episode goes on, its observation."""
        step = self._step()
        if self._opens_with_prefix():
            self._append(Source.INJECTED, Tokens(ids=self.limits.final_prefix))
        room = self.limits.max_context - self.num_tokens
        if room <= 0:
            return StopReason.CONTEXT_FULL
        completion = await self._generate(
            min(self.limits.max_turn_tokens, room), step.stop if step else self.rules.stop
        )
        action = self._read(completion, step)
        if not completion.stopped:
            return StopReason.CONTEXT_FULL if room <= self.limits.max_turn_tokens else StopReason.MAX_TOKENS
        if step is not None:
            return await self._follow(step, action)
        if not action.calls and action.error is None:
            return StopReason.ANSWERED if action.answer is not None else StopReason.PARSE_FAILED
        if self.met is not None:
            return self.met
        self.num_calls += max(1, len(action.calls))
        limit = self._limit(())
        return self._ask_at_last(limit) if limit else await self._observe(action)

    def _step(self) -> Step | None:
        """What this turn is for, where that is fixed."""
        number = len(self.turns)
        return self.rules.script[number] if number < len(self.rules.script) else None

    def _limit(self, media: tuple[Media, ...]) -> StopReason | None:
        """The limit that forbids to go on, and to show `media`."""
        if len(self.turns) >= self.limits.max_turns:
            return StopReason.MAX_TURNS
        if self.num_calls > self.limits.max_calls:
            return StopReason.TOOL_BUDGET
        if len(self.media) + len(media) > self.limits.max_media:
            return StopReason.MEDIA_BUDGET
        return None

    def _opens_with_prefix(self) -> bool:
        if not self.limits.final_prefix or not self.turns:
            return False
        if self.limits.final_message:
            return self.met is not None
        return len(self.turns) + 1 == self.limits.max_turns

    def _ask_at_last(self, limit: StopReason) -> StopReason | None:
        """A limit is met: the end, or the user's words that ask for the answer."""
        if not self.limits.final_message:
            return limit
        self.met = limit
        return self._say(Message(role="user", parts=(Part(text=self.limits.final_message),)), ())

    async def _follow(self, step: Step, action: Action) -> StopReason | None:
        """What a fixed turn is answered with."""
        result = await self._results(action)
        found = bool(result.media)
        media = result.media if found else self.prompt.media[:1]
        template = step.then if found else step.otherwise
        question = "".join(message.text for message in self.prompt.sample.messages if message.role == "user")
        self.turns[-1] = result.turn(self.turns[-1])
        self.num_calls += 1
        limit = self._limit(media)
        return self._ask_at_last(limit) if limit else self._say(filled(template, question, range(len(media))), media)

    async def _generate(self, max_tokens: int, stop: tuple[str, ...]) -> Completion:
        request = Request(
            episode=self.name,
            group=str(self.prompt.row),
            order=(self.prompt.row, self.sibling),
            new=self.unsent,
            media=self.unsent_media,
            seed=derive_seed(self.sampling.seed, self.prompt.row, self.sibling, len(self.turns)),
            max_tokens=max_tokens,
            temperature=self.sampling.temperature_of(self.sibling),
            stop=stop,
        )
        completion = await self.engine.generate(request)
        self.unsent, self.unsent_media = Tokens(ids=()), ()
        segment = Segment(
            source=Source.MODEL, ids=completion.ids, logprobs=completion.logprobs, version=completion.version
        )
        self.segments.append(segment)
        self.num_tokens += len(completion.ids)
        return completion

    def _read(self, completion: Completion, step: Step | None) -> Action:
        ids = completion.ids
        before = self.segments[-2]
        # An injected prefix opens the turn: the answer may start in it.
        if before.source is Source.INJECTED:
            ids = before.ids + ids
        text = self.family.opening + self.family.decode(ids)
        action = step.read(text) if step else parse_turn(text, self.family.codec, self.rules.answer_form)
        if len(action.calls) > self.limits.max_calls_per_turn:
            action = Action(error=f"at most {self.limits.max_calls_per_turn} call(s) in one turn")
        self.turns.append(
            Turn(
                segment=len(self.segments) - 1,
                text=text,
                calls=action.calls,
                answer=action.answer,
                error=None if action.error is None else self.toolbox.bounded(action.error),
            )
        )
        return action

    async def _observe(self, action: Action) -> StopReason | None:
        """Run the turn's calls and append what they gave; nothing is appended where it does not fit."""
        result = await self._results(action)
        limit = self._limit(result.media)
        if limit is not None:
            return self._ask_at_last(limit)
        parts, media = result.parts, result.media
        if result.error and self.rules.on_error == "image" and self.prompt.media:
            parts, media = (*parts, Part(media=len(media))), (*media, self.prompt.media[0])
        turn = result.turn(self.turns[-1])
        stop = self._say(Message(role="tool", parts=parts), media)
        if stop is None:
            self.turns[-1] = turn
        return stop

    def _say(self, message: Message, media: tuple[Media, ...]) -> StopReason | None:
        """Append what the model is told next; nothing is appended where it does not fit."""
        closed = self.segments[-1].ids[-1] in self.family.eos_ids
        tokens = self.family.extend(message, media, closed=closed)
        if self.num_tokens + len(tokens.ids) >= self.limits.max_context:
            return StopReason.CONTEXT_FULL
        self.media += media
        self.unsent_media = media
        self._append(Source.OBSERVATION, tokens)
        return None

    async def _results(self, action: Action) -> _Results:
        result = _Results(error=action.error)
        if action.error is not None:
            result.parts += (Part(text=self.toolbox.bounded(action.error)),)
        for call in action.calls:
            await self._call(call, result)
        return result

    async def _call(self, call: ToolCall, result: _Results) -> None:
        state = ToolState(media=(*self.media, *result.media), space=self.family.space)
        try:
            observation = await self.toolbox.run(call, state)
        except ToolError as error:
            result.error = str(error)
            result.parts += (Part(text=result.error),)
            return
        result.regions += (observation.region,) if observation.region else ()
        result.parts += tuple(Part(media=len(result.media) + number) for number in range(len(observation.media)))
        result.parts += (Part(text=observation.text),) if observation.text else ()
        result.media += observation.media

    def _append(self, source: Source, tokens: Tokens) -> None:
        self.segments.append(Segment(source=source, ids=tokens.ids, spans=tokens.spans))
        self.unsent = join(self.unsent, tokens)
        self.num_tokens += len(tokens.ids)

    def _note_error(self, error: Exception) -> None:
        text = self.toolbox.bounded(f"{type(error).__name__}: {error}")
        self.turns.append(Turn(segment=len(self.segments) - 1, text="", error=text))


@dataclass(slots=True)
class _Results:
    """What the calls of one turn gave."""

    parts: tuple[Part, ...] = ()
    media: tuple[Media, ...] = ()
    regions: tuple[Region, ...] = ()
    error: str | None = None

    def turn(self, turn: Turn) -> Turn:
        return Turn(
            segment=turn.segment,
            text=turn.text,
            calls=turn.calls,
            error=turn.error or self.error,
            regions=self.regions,
            results=tuple(medium.key for medium in self.media),
        )


def join(first: Tokens, second: Tokens) -> Tokens:
    """The two, one after the other."""
    moved = tuple(replace(span, start=span.start + len(first.ids)) for span in second.spans)
    return Tokens(ids=first.ids + second.ids, spans=first.spans + moved)
