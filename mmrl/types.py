"""The vocabulary: every value that crosses a module boundary is one of these.

All are frozen, slotted and keyword-only. Pixel sizes are (width, height); boxes are (x1, y1, x2, y2);
pictures are H x W x 3 uint8 RGB; times are seconds of presentation time, from the start of the file.
"Original" always means the medium's own pixels after rotation.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Size = tuple[int, int]
"""(width, height) in pixels."""
Box = tuple[float, float, float, float]
"""(x1, y1, x2, y2) with x1 < x2 and y1 < y2."""
Point = tuple[float, float]
"""(x, y)."""
TimeSpan = tuple[float, float]
"""(start, end) in seconds of presentation time, start < end."""
SAMPLE_RATE = 16_000
"""Samples a second of every decoded audio."""
Role = Literal["system", "user", "assistant", "tool"]
MediaKind = Literal["image", "video", "audio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaRef:
    """Where a medium comes from. `path` is relative to `root`, and may not leave it.

    Example: MediaRef(kind="image", path="canvas/0.png", root="data/zoom_digits")
    """

    kind: MediaKind
    path: str | None = None
    root: str | None = None
    data: bytes | None = field(default=None, repr=False)
    """The encoded file itself, where there is no path."""
    pictures: tuple[str, ...] = ()
    """A video that is given as pictures, in order: their paths."""
    picture_fps: float = 2.0
    """Pictures in a second of such a video. It belongs to the row: however closely it is looked at, its times stay."""
    span: TimeSpan | None = None
    """Only this part of a video or an audio; None is all of it, and an infinite end is that of the medium."""
    frames: int | None = None
    """Frames that a video is to be shown at; None leaves it to its processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinateFrame:
    """How the pixels that the model sees lie in the original medium.

    A crop of a crop carries the frame of its own pixels in the *original* medium, so that nesting needs no chain.
    Example: the right half of a 200 x 100 image, shown at 50 x 50:
    CoordinateFrame(original=(200, 100), seen=(50, 50), offset=(100.0, 0.0), scale=(2.0, 2.0))
    """

    original: Size
    """Size of the original medium."""
    seen: Size
    """Size that the model sees."""
    offset: tuple[float, float] = (0.0, 0.0)
    """Where the seen region's top-left corner lies, in original pixels."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Original pixels per seen pixel, along x and y."""

    def to_original(self, box: Box) -> Box:
        """Map a box in seen pixels to original pixels."""
        (ox, oy), (sx, sy) = self.offset, self.scale
        x1, y1, x2, y2 = box
        return (ox + sx * x1, oy + sy * y1, ox + sx * x2, oy + sy * y2)

    def to_seen(self, box: Box) -> Box:
        """Map a box in original pixels to seen pixels; it may lie partly outside."""
        (ox, oy), (sx, sy) = self.offset, self.scale
        x1, y1, x2, y2 = box
        return ((x1 - ox) / sx, (y1 - oy) / sy, (x2 - ox) / sx, (y2 - oy) / sy)


NO_PICTURE = CoordinateFrame(original=(0, 0), seen=(0, 0))
"""The frame of a medium that has no pixels."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Media:
    """A decoded medium as the model is given it.

    `key` is a content hash: equal keys mean equal `data`, whatever file or tool they came from.
    """

    kind: MediaKind
    key: str
    data: np.ndarray = field(repr=False)
    """Image: H x W x 3 uint8. Video: T x H x W x 3 uint8. Audio: (N,) float32 mono at 16 kHz."""
    frame: CoordinateFrame = NO_PICTURE
    """Of an image, and of every frame of a video."""
    original: np.ndarray | None = field(default=None, repr=False)
    """An image's own pixels, H x W x 3 uint8; crops are taken from here."""
    times: tuple[float, ...] = ()
    """When each frame of a video is shown; for a picture out of a video, its one time."""
    span: TimeSpan | None = None
    """The part of the file that a video or an audio covers."""
    source: MediaRef | None = None
    """The file of a video or an audio, for tools that look closer."""
    parent: str | None = None
    """Key of the medium that a tool cut this one from."""
    label: str = ""
    """Where it came from, for error messages and the report (a file name, "crop of image 0")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A part of a medium that the model asked for."""

    on: str
    """Key of the medium that it was read from."""
    box: Box | None = None
    """In original pixels of the root medium."""
    span: TimeSpan | None = None
    """Of the file."""
    times: tuple[float, ...] = ()
    """Single moments of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a message: text, or the next medium of the list that the message belongs to."""

    text: str | None = None
    media: int | None = None
    """Index into the sample's (or the observation's) media."""
    sound: int | None = None
    """Beside a video: index of the audio that is heard with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call as the model wrote it, parsed but not yet validated against the tool's argument model."""

    name: str
    arguments: Mapping[str, Any]
    typed: bool = True
    """False: every value is text, and the tool's schema says what it means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    role: Role
    parts: tuple[Part, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def text(self) -> str:
        return "".join(part.text or "" for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gold:
    """What a reward compares with. Boxes and points are in the pixels of medium 0's original, times in its seconds."""

    answer: str | None = None
    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    spans: tuple[TimeSpan, ...] = ()
    track: tuple[tuple[float, Box], ...] = ()
    """One object through a video: (time, box)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One dataset row."""

    id: str
    messages: tuple[Message, ...]
    media: tuple[MediaRef, ...] = ()
    gold: Gold = Gold()
    demonstration: tuple[Message, ...] = ()
    """Assistant messages of a worked example (SFT). Boxes of its calls are in original pixels."""
    use_tools: bool = True
    """False: the row is asked without tools, whatever the run offers."""
    where: str = ""
    """File and row number, for error messages."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Source(enum.StrEnum):
    """Who wrote a run of tokens. The loss is taken on MODEL only."""

    PROMPT = "prompt"
    MODEL = "model"
    OBSERVATION = "observation"
    INJECTED = "injected"


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaSpan:
    """Where placeholder ids of a medium stand. `start` counts from the start of the thing that holds the span."""

    key: str
    start: int
    length: int
    grid: tuple[int, int, int] | None
    """(t, h, w) in merged vision tokens: t * h * w == length. None: positions run as those of text (audio)."""
    offset: int = 0
    """Which of the medium's features stands at `start`; more than 0 where a medium is spread over several spans."""
    step: float = 1.0
    """Positions from one step of the grid in time to the next."""
    joined: bool = False
    """Shown at the same time as the span before it: positions go on from `offset`, counted from that span's origin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Token ids with their media; what a model family encodes text and media to."""

    ids: tuple[int, ...]
    spans: tuple[MediaSpan, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of token ids from one source. Media placeholders are expanded, one id per vision token."""

    source: Source
    ids: tuple[int, ...]
    spans: tuple[MediaSpan, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Of each id under the policy that sampled it; only where source is MODEL and an engine sampled it."""
    version: int | None = None
    """Policy version that sampled it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One model turn: a view on the segments, never a second truth."""

    segment: int
    """Index of the model segment."""
    text: str
    """The segment, decoded."""
    calls: tuple[ToolCall, ...] = ()
    answer: str | None = None
    error: str | None = None
    """What the model was told about a malformed or failed call."""
    regions: tuple[Region, ...] = ()
    """What the calls looked at, in order."""
    results: tuple[str, ...] = ()
    """Keys of the media that the tools returned."""


class StopReason(enum.StrEnum):
    """Why an episode ended; each is a metric."""

    ANSWERED = "answered"
    PARSE_FAILED = "parse_failed"
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    CONTEXT_FULL = "context_full"
    TOOL_BUDGET = "tool_budget"
    MEDIA_BUDGET = "media_budget"
    ENGINE_ERROR = "engine_error"


class ScoreKind(enum.StrEnum):
    VALUE = "value"
    NOT_APPLICABLE = "not_applicable"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A reward's value, or not applicable, or an error with its reason: never folded into 0."""

    kind: ScoreKind
    value: float = float("nan")
    reason: str = ""
    flag: str = ""
    """A short word for something to be counted ("clipped"); each is a metric."""

    @classmethod
    def of(cls, value: float, reason: str = "", *, flag: str = "") -> Score:
        return cls(kind=ScoreKind.VALUE, value=float(value), reason=reason, flag=flag)

    @classmethod
    def not_applicable(cls, reason: str) -> Score:
        return cls(kind=ScoreKind.NOT_APPLICABLE, reason=reason)

    @classmethod
    def error(cls, reason: str) -> Score:
        return cls(kind=ScoreKind.ERROR, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One episode, as tokens. `segments` is the truth; everything else is a view on it or a label."""

    sample_id: str
    index: int
    """Number of this sibling in its group."""
    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    stop: StopReason
    media: Mapping[str, Media] = field(default_factory=dict)
    """Every medium that the segments refer to, by key."""
    origin: Literal["policy", "expert"] = "policy"
    scores: Mapping[str, Score] = field(default_factory=dict)
    reward: Score = Score(kind=ScoreKind.NOT_APPLICABLE, reason="not scored")
    """The weighted combination of the scores."""

    @property
    def answer(self) -> str | None:
        """The final turn's answer."""
        return self.turns[-1].answer if self.turns else None

    @property
    def num_model_tokens(self) -> int:
        return sum(len(s.ids) for s in self.segments if s.source is Source.MODEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One prompt's siblings."""

    sample: Sample
    trajectories: tuple[Trajectory, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """What the trainer computes on: one trajectory's tokens, with explicit targets.

    The hidden state at `source_N[n]` predicts `target_N[n]`.
    """

    ids_T: np.ndarray
    positions_3T: np.ndarray
    spans: tuple[MediaSpan, ...]
    source_N: np.ndarray
    """Index into T of the state that predicts each target."""
    target_N: np.ndarray
    """Token id of each target."""
