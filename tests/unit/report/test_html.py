"""The report is made from a run's files; what a model wrote can do nothing on the page."""

from html.parser import HTMLParser

import numpy as np
import pytest

from mmrl.report.curves import MAX_POINTS, curves
from mmrl.report.html import write_report
from mmrl.report.store import RunStore
from mmrl.types import (
    CoordinateFrame,
    Gold,
    Group,
    Media,
    MediaSpan,
    Message,
    Part,
    Region,
    Sample,
    Score,
    Segment,
    Source,
    StopReason,
    Trajectory,
    Turn,
)

EVIL = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Counts tags, and notes the styles of marks and the sources of images."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.marks, self.images = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        kind = found.get("class") or ""
        if kind.startswith("mark "):
            self.marks.append((kind.removeprefix("mark "), found["style"]))
        if tag == "img":
            self.images.append(found["src"])


def medium(key, offset=(0.0, 0.0), scale=(4.0, 4.0), parent=None):
    pixels = np.zeros((100, 100, 3), dtype=np.uint8)
    frame = CoordinateFrame(original=(400, 400), seen=(100, 100), offset=offset, scale=scale)
    return Media(kind="image", key=key, data=pixels, frame=frame, original=pixels, parent=parent, label=key)


def group(text="look", answer="7"):
    """One trajectory that zooms into the quarter at (200, 0) of a 400 x 400 image; the gold box lies inside."""
    media = {"root": medium("root"), "crop": medium("crop", (200.0, 0.0), (2.0, 2.0), "root")}

    def span(key):
        return (MediaSpan(key=key, start=0, length=1, grid=(1, 1, 1)),)

    trajectory = Trajectory(
        sample_id="s",
        index=0,
        segments=(
            Segment(source=Source.PROMPT, ids=(0, 1), spans=span("root")),
            Segment(source=Source.MODEL, ids=(2, 3), logprobs=(-1.0, -2.0)),
            Segment(source=Source.OBSERVATION, ids=(0, 4), spans=span("crop")),
            Segment(source=Source.MODEL, ids=(5,), logprobs=(-0.5,)),
        ),
        turns=(
            Turn(segment=1, text=text, regions=(Region(on="root", box=(200.0, 0.0, 400.0, 200.0)),), results=("crop",)),
            Turn(segment=3, text=text, answer=answer),
        ),
        stop=StopReason.ANSWERED,
        media=media,
        scores={"accuracy": Score.of(1.0), "judge": Score.error(text)},
        reward=Score.error(text),
    )
    sample = Sample(
        id="s",
        messages=(Message(role="user", parts=(Part(text=text),)),),
        gold=Gold(answer="7", boxes=((220.0, 20.0, 260.0, 60.0),)),
    )
    return Group(sample=sample, trajectories=(trajectory,))


@pytest.fixture
def report(tmp_path):
    """report(groups) is the page of a run with these groups."""

    def make(groups, text="look", limit=40):
        store = RunStore(tmp_path)
        for step, one in enumerate(groups, start=1):
            store.log_group("grpo", step, "train", one, lambda ids: f"{text} {list(ids)}")
            store.log_metrics("grpo", step, {"reward": step / 2, "loss": float("nan"), text: 1.0})
        store.close()
        return Page(write_report(tmp_path, limit).read_text())

    return make


def test_every_image_of_a_turn_is_shown_and_carried_by_the_page(report):
    page = report([group()])
    assert len(page.images) == 2
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.images)


def test_the_asked_box_is_drawn_on_its_parent_and_the_gold_box_wherever_it_is_seen(report):
    marks = report([group()]).marks
    assert marks == [
        ("gold", "left:55.00%;top:5.00%;width:10.00%;height:10.00%"),
        ("asked", "left:50.00%;top:0.00%;width:50.00%;height:50.00%"),
        ("gold", "left:10.00%;top:10.00%;width:20.00%;height:20.00%"),
    ]


def test_what_a_model_or_a_row_wrote_is_text(report):
    page = report([group(text=EVIL, answer=EVIL)], text=EVIL)
    assert "script" not in page.tags
    assert len(page.images) == 2


def test_at_most_the_wanted_number_of_trajectories_is_shown_the_latest_of_training(report, tmp_path):
    page = report([group() for _ in range(30)], limit=20)
    assert page.tags.count("article") == 20
    assert "step 30" in (tmp_path / "report.html").read_text()


def test_curves_skip_what_is_not_a_number_and_thin_long_runs():
    lines = [{"stage": "s", "step": n, "time": 0, "reward": float(n), "loss": None} for n in range(5000)]
    (curve,) = curves(lines)
    assert (curve.name, curve.low > 0, curve.last) == ("reward", True, pytest.approx(4993, abs=7))
    assert curve.path.count(",") <= MAX_POINTS
    assert curve.headline
