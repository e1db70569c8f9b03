"""The ladder on video files: looks nest, and a tower sees each moment once."""

from dataclasses import replace

import pytest
from media_files import read_number, write_video
from typer.testing import CliRunner

from mmrl import Reasoner
from mmrl.cli import app
from mmrl.processors.video import Video
from mmrl.scaling.ladders import SparseToDense
from mmrl.types import MediaRef

CONFIG = """
name: ask
deterministic: false
model: {{path: {model}}}
data:
  video: {{use: mmrl.processors.video:Video, min_pixels: 3136, max_pixels: 12544}}
episode: {{max_turn_tokens: 4}}
"""


class ToTheTop(SparseToDense):
    """Climbs every rung; a random model would agree at once that it has no answer."""

    def look(self, rounds):
        titles = [title for title, _ in self.rungs()]
        if len(rounds) == len(titles):
            return None
        title, media = self.rungs()[len(rounds)]
        return replace(super().look([]), title=title, media=media)


@pytest.fixture
def clip(tmp_path):
    """64 numbered frames."""
    write_video(tmp_path / "clip.mp4", numbers=range(64))
    return tmp_path / "clip.mp4"


@pytest.fixture
def reasoner(model_dir):
    video = Video(min_pixels=3136, max_pixels=12544)
    return Reasoner.from_pretrained(model_dir, processors={"video": video}, max_turn_tokens=4)


def test_rungs_nest_and_no_moment_is_encoded_twice(reasoner, clip):
    answer = reasoner.answer(clip, "Which number?", ToTheTop(start=4, densest=16, samples=2))
    shown = [medium for rung in answer.rungs for medium in rung.trajectories[0].media.values()]
    numbers = [[read_number(frame) for frame in medium.data] for medium in shown]
    assert numbers[2] == list(range(0, 64, 4))
    assert numbers[1] == [number for start in range(0, 64, 16) for number in (start, start + 4)][:8]
    assert numbers[0] == [number for start in (0, 32) for number in (start, start + 4)]
    assert answer.frames == 2 * (4 + 8 + 16)
    features = reasoner.runner.engine.features
    assert features.encoded == len({pair for row in numbers for pair in zip(row[::2], row[1::2], strict=True)}) == 8
    reasoner.answer(clip, "And now?", SparseToDense(start=16, densest=16))
    assert features.encoded == 8


def test_the_look_decides_how_many_frames_there_are_whatever_a_row_asks_for(reasoner, clip):
    ref = MediaRef(kind="video", path=clip.name, root=str(clip.parent), frames=2)
    answer = reasoner.answer(ref, "Which number?", SparseToDense(start=4, densest=8, samples=1))
    assert answer.frames == 4


def test_answer_on_a_video_file(clip, model_dir, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG.format(model=model_dir))
    ladder = ["--strategy", "sparse-to-dense", "--set", "start=4", "--set", "densest=16", "--set", "samples=3"]
    asked = ["answer", "Which number?", "--video", str(clip), "--config", str(tmp_path / "config.yaml"), *ladder]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "rung 1 (4 frames)  votes no answer: 3  frames 12  tokens " in result.output
