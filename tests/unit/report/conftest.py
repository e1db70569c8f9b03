"""Runs that are written by hand, and pages that are read back."""

from html.parser import HTMLParser

import numpy as np
import pytest

from mmrl.report.html import write_report
from mmrl.report.store import RunStore
from mmrl.types import (
    CoordinateFrame,
    Gold,
    Group,
    Media,
    MediaRef,
    MediaSpan,
    Message,
    Part,
    Sample,
    Score,
    Segment,
    Source,
    StopReason,
    Trajectory,
    Turn,
)


class Page(HTMLParser):
    """What a page holds: tags, marks on pictures, bands on lines of time, and what it carries."""

    def __init__(self, text):
        super().__init__()
        self.text = text
        self.tags, self.attributes, self.marks, self.bands, self.pictures, self.sounds = [], set(), [], [], [], []
        self.hours, self.paths, self.headings = [], [], []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.attributes |= set(found)
        self._inside = tag
        kind, _, rest = (found.get("class") or "").partition(" ")
        if kind == "mark":
            self.marks.append((rest, found["style"]))
        elif kind == "band":
            self.bands.append((rest, found["style"], found["title"]))
        elif kind == "picture":
            self.pictures.append((rest, found["style"], found["title"]))
        elif kind == "hour":
            self.hours.append(found["style"])
        elif tag == "path":
            self.paths.append(found["d"])
        elif tag == "audio":
            self.sounds.append(found["src"])

    def handle_data(self, data):
        if self._inside in ("h2", "b"):
            self.headings.append(data)
        self._inside = ""

    @property
    def carried(self):
        """The pictures that the page holds, by style class."""
        rules = [line for line in self.text.splitlines() if "{ background-image: url(" in line]
        return {rule.split(" ")[0][1:]: rule.split("url(")[1].removesuffix("); }") for rule in rules}


@pytest.fixture
def make_image():
    """make_image(key, ...) is 100 x 100, of an original of 400 x 400."""

    def make(key, offset=(0.0, 0.0), scale=(4.0, 4.0), parent=None, times=(), label=None):
        frame = CoordinateFrame(original=(400, 400), seen=(100, 100), offset=offset, scale=scale)
        pixels = np.zeros((100, 100, 3), dtype=np.uint8)
        return Media(
            kind="image",
            key=key,
            data=pixels,
            frame=frame,
            parent=parent,
            times=times,
            label=key if label is None else label,
        )

    return make


@pytest.fixture
def make_video():
    """make_video(key, times, span) is 100 x 50, of an original of 400 x 200; the grey of a frame is its time."""

    def make(key, times, span, parent=None, label="clip.mp4"):
        greys = np.asarray(times, dtype=np.uint8)[:, None, None, None]
        return Media(
            kind="video",
            key=key,
            data=np.broadcast_to(greys, (len(times), 50, 100, 3)),
            frame=CoordinateFrame(original=(400, 200), seen=(100, 50), scale=(4.0, 4.0)),
            times=tuple(map(float, times)),
            span=span,
            source=MediaRef(kind="video", path="clip.mp4"),
            parent=parent,
            label=label,
        )

    return make


@pytest.fixture
def make_audio():
    """make_audio(key, seconds) is a tone that is louder and louder."""

    def make(key, seconds, span=None, parent=None, path="talk.wav", label="talk.wav"):
        time = np.arange(round(16_000 * seconds)) / 16_000
        samples = (time / seconds * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
        source = MediaRef(kind="audio", path=path)
        return Media(kind="audio", key=key, data=samples, span=span, source=source, parent=parent, label=label)

    return make


@pytest.fixture
def make_group():
    """make_group(media of the prompt, (regions, media of the result), ..., gold=...): a turn for each pair, then 7."""

    def make(prompt, *looks, gold=None, sample="s", text="look", siblings=1):
        def segment(source, media, *ids):
            spans = tuple(MediaSpan(key=one.key, start=n, length=1, grid=(1, 1, 1)) for n, one in enumerate(media))
            return Segment(source=source, ids=(*range(len(media)), *ids), spans=spans)

        segments, turns = [segment(Source.PROMPT, prompt, 101)], []
        for regions, results in looks:
            turns.append(
                Turn(segment=len(segments), text=text, regions=regions, results=tuple(one.key for one in results))
            )
            segments += [segment(Source.MODEL, [], 102), segment(Source.OBSERVATION, results, 103)]
        turns.append(Turn(segment=len(segments), text=text, answer="7"))
        segments.append(segment(Source.MODEL, [], 104))
        media = {one.key: one for one in [*prompt, *(one for _, results in looks for one in results)]}
        trajectories = tuple(
            Trajectory(
                sample_id=sample,
                index=index,
                segments=tuple(segments),
                turns=tuple(turns),
                stop=StopReason.ANSWERED,
                media=media,
                scores={"accuracy": Score.of(1.0), "judge": Score.error(text)},
                reward=Score.error(text),
            )
            for index in range(siblings)
        )
        row = Sample(
            id=sample, messages=(Message(role="user", parts=(Part(text=text),)),), gold=gold or Gold(answer="7")
        )
        return Group(sample=row, trajectories=trajectories)

    return make


@pytest.fixture
def log(tmp_path):
    """log(group, ..., rung=...) adds groups to the run in tmp_path."""

    def write(*groups, text="look", rung=None):
        store = RunStore(tmp_path)
        for step, one in enumerate(groups, start=1):
            store.log_group("grpo", step, "train", one, lambda ids: f"{text} {list(ids)}", rung)
        store.close()

    return write


@pytest.fixture
def page(tmp_path):
    """page() is the report of the run in tmp_path."""

    def read(limit=40):
        return Page(write_report(tmp_path, limit).read_text())

    return read
