"""A run's directory: config.yaml manifest.json metrics.jsonl rollouts/stream.jsonl media/ checkpoints/ report.html.

Files are the truth: every view is made from them. Lines are appended; a torn last line is ignored by readers and cut
off when a run goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from mmrl.errors import MmrlError
from mmrl.report.media import moments_of, save_medium
from mmrl.types import Group, Segment, Trajectory, Turn

Phase = Literal["train", "rollout"]
Line = Mapping[str, Any]
Decode = Callable[[Sequence[int]], str]


class RunStore:
    """Writes one run directory; a second writer is refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._make_folders()
        self._lock = (path / "run.lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise MmrlError(f"{path}: another process writes this run; wait for it or choose another name") from None

    def clear(self) -> None:
        """Remove everything of an earlier run."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "run.lock":
                path.unlink()
        self._make_folders()

    def close(self) -> None:
        self._lock.close()

    def log_metrics(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        line = {"stage": stage, "step": step, "time": time.time(), **metrics}
        append_line(self.path / "metrics.jsonl", line)

    def log_group(
        self, stage: str, step: int, phase: Phase, group: Group, decode: Decode, rung: Line | None = None
    ) -> None:
        """One line of the stream per trajectory; its media once each, by content.

        Args:
            rung: of a test-time strategy, the rung that the trajectories belong to: `number` and `title`; `accepted`,
                `votes` (answer to count), `frames` and `tokens` where they are known.
        """
        for line in self._lines(group, decode, rung):
            append_line(
                self.path / "rollouts" / "stream.jsonl",
                {"stage": stage, "step": step, "phase": phase, **line},
            )

    def write_groups(
        self, name: str, groups: Sequence[Group], decode: Decode, rung: Line | Sequence[Line] | None = None
    ) -> None:
        """A file of its own, rollouts/`name`.jsonl, replaced as a whole.

        Args:
            rung: as `log_group` takes it, of all groups; a sequence has one for each group.
        """
        rungs = rung if isinstance(rung, Sequence) else [rung] * len(groups)
        lines = [line for group, one in zip(groups, rungs, strict=True) for line in self._lines(group, decode, one)]
        write_atomic(
            self.path / "rollouts" / f"{name}.jsonl", "".join(encode({"phase": name, **line}) for line in lines)
        )

    def rewind(self, position: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the lines for which `position` is False: those written after the checkpoint that a run goes on from."""
        for name in ("metrics.jsonl", "rollouts/stream.jsonl"):
            path = self.path / name
            if path.exists():
                kept = [line for line in read_lines(path) if position(line)]
                write_atomic(path, "".join(encode(line) for line in kept))

    def _lines(self, group: Group, decode: Decode, rung: Line | None) -> Iterator[dict[str, Any]]:
        for trajectory in group.trajectories:
            moments = moments_of(trajectory, group.sample.gold.track)
            media = {key: save_medium(self.path, medium, moments) for key, medium in trajectory.media.items()}
            line = describe(group, trajectory, decode, media)
            yield line if rung is None else {**line, "rung": rung}

    def _make_folders(self) -> None:
        for folder in ("rollouts", "media", "checkpoints"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)


def describe(group: Group, trajectory: Trajectory, decode: Decode, media: Mapping[str, Line]) -> dict[str, Any]:
    """A trajectory as plain JSON values; `media` says what was stored of each medium."""
    sample = group.sample
    return {
        "sample": trajectory.sample_id,
        "index": trajectory.index,
        "stop": trajectory.stop.value,
        "question": "\n".join(message.text for message in sample.messages if message.role == "user"),
        "gold": asdict(sample.gold),
        "answer": trajectory.answer,
        "reward": asdict(trajectory.reward),
        "scores": {name: asdict(score) for name, score in trajectory.scores.items()},
        "segments": [_segment(segment, decode) for segment in trajectory.segments],
        "turns": [_turn(turn) for turn in trajectory.turns],
        "media": dict(media),
    }


def _segment(segment: Segment, decode: Decode) -> dict[str, Any]:
    media = {position for span in segment.spans for position in range(span.start, span.start + span.length)}
    text = decode([token for position, token in enumerate(segment.ids) if position not in media])
    logprob = sum(segment.logprobs) / len(segment.logprobs) if segment.logprobs else None
    return {
        "source": segment.source.value,
        "text": text,
        "num_tokens": len(segment.ids),
        "mean_logprob": logprob,
        "media": list(dict.fromkeys(span.key for span in segment.spans)),
    }


def _turn(turn: Turn) -> dict[str, Any]:
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in turn.calls]
    return {
        "segment": turn.segment,
        "text": turn.text,
        "calls": calls,
        "answer": turn.answer,
        "error": turn.error,
        "regions": [asdict(region) for region in turn.regions],
        "results": list(turn.results),
    }


def encode(line: Mapping[str, Any]) -> str:
    """One JSON line; what is not a JSON number becomes null."""
    return json.dumps(_finite(line)) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(encode(line))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSON-lines file, without a torn last one."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                yield json.loads(text)
            except ValueError:
                return


def write_atomic(path: Path, text: str) -> None:
    """The file holds either its old content or all of `text`, whatever happens."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8", errors="replace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
