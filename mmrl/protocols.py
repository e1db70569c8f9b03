"""The seams: what an implementation must offer, in one or two methods each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel

from mmrl.models.space import SeenPixels
from mmrl.types import (
    Box,
    CoordinateFrame,
    Group,
    Media,
    MediaRef,
    Message,
    Region,
    Row,
    Score,
    Tokens,
    ToolCall,
)

if TYPE_CHECKING:
    import torch

    from mmrl.cache.features import FeatureCache
    from mmrl.models.embed import Embedded


class Processor(Protocol):
    """Decodes one kind of medium, safely: caps are read from the header before anything is allocated.

    Processors are frozen dataclasses: `dataclasses.replace(video, frames=32)` is the same one that looks more closely.
    Several threads may load at once.
    """

    def load(self, ref: MediaRef) -> Media:
        """Raise MediaError, naming the file, for anything that cannot be shown to a model."""
        ...


@runtime_checkable
class Traced(Processor, Protocol):
    """A processor whose pixels or samples depend on more than its fields."""

    def provenance(self) -> dict[str, str]:
        """For the run's manifest, e.g. {"video_backend": "pyav 18.1.0"}."""
        ...


class CoordinateSpace(Protocol):
    """The numbers in which a model family speaks about places in an image."""

    @property
    def description(self) -> str:
        """For error messages that a model reads, e.g. "absolute pixels of the image as shown"."""
        ...

    @property
    def decimals(self) -> int:
        """Digits behind the point that a model writes."""
        ...

    def to_seen(self, box: Box, frame: CoordinateFrame) -> Box:
        """The family's numbers to seen pixels."""
        ...

    def from_seen(self, box: Box, frame: CoordinateFrame) -> Box:
        """Seen pixels to the family's numbers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolState:
    """What a tool may know about the episode that calls it."""

    media: tuple[Media, ...]
    """Every medium so far, in the order in which the model saw them."""
    space: CoordinateSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a tool gives back: text and media, and the region it looked at."""

    text: str = ""
    media: tuple[Media, ...] = ()
    region: Region | None = None


class ToolError(Exception):
    """A tool's refusal, in words that the model can act on."""


class Tool(Protocol):
    """Something that a model may call. The JSON schema comes from `arguments`."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def arguments(self) -> type[BaseModel]: ...

    async def run(self, arguments: Any, state: ToolState) -> Observation:
        """Raise ToolError for a request that cannot be met."""
        ...


@runtime_checkable
class SpeaksPlaces(Protocol):
    """A tool whose arguments hold places, which rows demonstrate in original pixels."""

    def spoken(self, arguments: dict[str, Any], state: ToolState) -> dict[str, Any]:
        """A demonstrated call as the model would write it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardContext:
    """What a reward may know beside its group."""

    step: int
    """Optimiser step of the stage, from 0."""
    space: CoordinateSpace = SeenPixels()
    """The numbers in which the model speaks about places."""


class Reward(Protocol):
    """Scores a whole group: one Score per trajectory, in order."""

    async def score(self, group: Group, context: RewardContext) -> list[Score]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Asks an engine to continue an episode by one model turn."""

    episode: str
    """Unique while the episode is open; the engine keeps its state between turns under this name."""
    group: str
    """Episodes of one group start from one prompt, which is computed once."""
    order: tuple[int, int]
    """(row, sibling): batches are formed in this order."""
    new: Tokens
    """What was appended since the last turn; the whole prompt at the first."""
    media: tuple[Media, ...]
    """The media that `new` refers to."""
    seed: int
    max_tokens: int
    """New tokens at most."""
    temperature: float
    """0 is greedy; log-probs are then those of temperature 1."""
    stop: tuple[str, ...] = ()
    """Strings that end the turn, beside the end token; what was written stays as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    version: int
    stopped: bool
    """True: the model ended its turn, or wrote a stop string; False: it ran into `max_tokens`."""


class RolloutEngine(Protocol):
    """Token in, token out. An episode is opened before it starts and released when it ends."""

    def open(self, episode: str, group: str) -> None: ...

    async def generate(self, request: Request) -> Completion: ...

    def release(self, episode: str) -> None: ...


class PolicyEngine(RolloutEngine, Protocol):
    """An engine that writes with the policy that is being trained."""

    version: int
    """Of the policy."""
    features: FeatureCache

    def check(self, prompt: Tokens) -> None:
        """ValueError for a prompt that the engine cannot be given."""
        ...

    def weights_changed(self, *, vision: bool) -> None:
        """Enter the next policy version. Features survive unless the vision tower was trained."""
        ...

    def sleep(self) -> None:
        """Rollouts are done for now: the device is the trainer's until the next episode is opened."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossInputs:
    """What a loss sees of one forward: N targets, with their place in the whole optimiser step."""

    logprobs_N: torch.Tensor
    """Detached."""
    entropies_N: torch.Tensor
    """Detached."""
    index_N: torch.Tensor
    """Index of each target in the step's flat list of targets."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossTerms:
    """A loss in weight form: its gradient is sum(d_logprob * grad logprob) + sum(d_entropy * grad entropy)."""

    value: float
    """This forward's share of the loss."""
    d_logprobs_N: torch.Tensor
    d_entropies_N: torch.Tensor | None = None


Loss = Callable[[LossInputs], LossTerms]


class TrainEngine(Protocol):
    """Runs forward, backward and step on the rows of a whole optimiser step."""

    def update(self, rows: Sequence[Row], media: Mapping[str, Media], loss: Loss) -> dict[str, float]: ...

    def logprobs(self, rows: Sequence[Row], media: Mapping[str, Media]) -> torch.Tensor:
        """Log-prob of every target, flat in row order."""
        ...


class ToolCodec(Protocol):
    """How a family writes tool calls."""

    def format_call(self, call: ToolCall) -> str: ...

    def parse(self, text: str) -> tuple[tuple[ToolCall, ...], str | None]:
        """(calls, error): the error names what is malformed, in words that the model can act on."""
        ...


class ModelFamily(Protocol):
    """Everything that differs between families of checkpoints."""

    space: CoordinateSpace
    codec: ToolCodec
    eos_ids: tuple[int, ...]
    reserved_ids: tuple[int, ...]
    """Ids that a policy may never sample: they are suppressed before the softmax."""
    opening: str
    """Text that the header of the model's turn already holds."""
    recurrent: bool
    """Layers carry a state from token to token: branches cannot share what was computed."""

    def encode_prompt(self, messages: Sequence[Message], media: Sequence[Media], tools: Sequence[Tool]) -> Tokens: ...

    def extend(self, observation: Message, media: Sequence[Media], *, closed: bool) -> Tokens:
        """Ids that follow a model turn: a tool's result, or a user's next words.

        Args:
            closed: whether the turn ended with its end token.
        """
        ...

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Text in which control tokens count as text."""
        ...

    def encode_turn(self, message: Message) -> tuple[int, ...]:
        """An assistant message as the model would have written it, end token included."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def positions(self, tokens: Tokens) -> np.ndarray:
        """(3, T) M-RoPE positions."""
        ...

    def parts(self, medium: Media) -> tuple[Media, ...]:
        """Pieces that are encoded apart from one another; their features in order are the medium's."""
        ...

    def tower_tokens(self, part: Media) -> int:
        """Tokens that a part takes in a pass through its tower, padding included."""
        ...

    def media_settings(self) -> str:
        """How media are cut and normalised, as text: what features depend on beside the towers."""
        ...

    def text_model(self, model: Any) -> Any:
        """The module that `hidden_states` runs."""
        ...

    def towers(self, model: Any) -> list[torch.nn.Module]:
        """The modules that encode media."""
        ...

    def hidden_states(
        self,
        model: Any,
        inputs: Embedded,
        mask: torch.Tensor | None,
        cache: Any = None,
        valid_BT: torch.Tensor | None = None,
        **attention: Any,
    ) -> torch.Tensor:
        """(B, T, D) last hidden states of the text model.

        Args:
            mask: (B, 1, queries, keys), True where attention is allowed; None is plain causal attention.
            cache: transformers Cache that holds the keys of earlier tokens and takes those of these.
            valid_BT: True for real tokens; recurrent layers skip the others.
            attention: what the attention function takes beside states and mask, e.g. the tree of a packed sequence.
        """
        ...

    def encode_media(self, model: Any, media: Sequence[Media]) -> list[torch.Tensor]:
        """Features of each medium, (tokens, D), wider with DeepStack; gradients flow."""
        ...
