"""Questions asked of a real tiny model, from Python."""

import subprocess
import sys
import wave
from dataclasses import replace

import families
import numpy as np
import pytest
from PIL import Image as Pillow

from mmrl import Reasoner
from mmrl.errors import ConfigError, DataError, MediaError
from mmrl.processors.image import Image
from mmrl.rollout.engine_hf import HFEngine
from mmrl.scaling.ladders import ResolutionLadder
from mmrl.scaling.reasoner import ask, reference
from mmrl.tools.zoom import Zoom
from mmrl.types import MediaRef

SMALL = {"image": Image(min_pixels=3136, max_pixels=12544)}


@pytest.fixture(scope="module")
def reasoner(model_dir):
    return Reasoner.from_pretrained(model_dir, processors=SMALL, max_turn_tokens=6)


@pytest.fixture
def picture_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def test_importing_mmrl_imports_no_torch():
    code = (
        "import sys, mmrl; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)), mmrl.Reasoner.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[] Reasoner\n"


def test_a_question_about_a_file_a_picture_and_a_reference_is_the_same_question(reasoner, picture_file):
    ref = MediaRef(kind="image", path="noise.png", root=str(picture_file.parent))
    answers = [
        reasoner.answer(medium, "Which digit?", "vote", samples=3)
        for medium in (str(picture_file), picture_file, Pillow.open(picture_file), ref, [ref])
    ]
    texts = [[t.turns[0].text for t in answer.trajectories] for answer in answers]
    assert len(texts[0]) == 3
    assert all(other == texts[0] for other in texts)
    assert {(answer.frames, answer.tokens) for answer in answers} == {(3, answers[0].tokens)}


def test_an_answer_says_what_it_took(reasoner, picture_file):
    ladder = ResolutionLadder(start_pixels=3136, max_pixels=12544, samples=2)
    answer = reasoner.answer(picture_file, "Which digit?", ladder)
    assert answer.answer is None  # six tokens of a random model
    assert answer.votes == {"": 2}
    assert [rung.look.title for rung in answer.rungs] == ["3136 pixels"]
    assert answer.text == answer.trajectories[0].turns[-1].text
    assert answer.tokens == sum(len(s.ids) for t in answer.trajectories for s in t.segments)


def test_tools_and_limits_are_those_that_were_asked_for(model_dir):
    named = Reasoner.from_pretrained(
        model_dir, tools=["mmrl.tools.zoom:Zoom", {"use": "mmrl.tools.zoom:Zoom", "name": "z"}]
    )
    built = Reasoner.from_pretrained(model_dir, tools=[Zoom()], max_turns=7)
    assert [tool.name for tool in named.runner.tools] == [Zoom().name, "z"]
    assert built.runner.tools == (Zoom(),)
    assert built.runner.limits.max_turns == 7


def test_pictures_fit_the_models_tower(tmp_path):
    reasoner = Reasoner.from_pretrained(families.write("qwen3_vl", tmp_path / "model"), max_turn_tokens=2)
    picture = Pillow.new("RGB", (100, 100))
    assert reasoner.answer(picture, "Which?").trajectories[0].media.popitem()[1].frame.seen == (96, 96)


@pytest.mark.parametrize(
    ("medium", "kind"),
    [("a.PNG", "image"), ("b.mp4", "video"), ("c.wav", "audio"), ("d/e.jpeg", "image")],
)
def test_the_kind_of_a_file_is_told_by_its_ending(medium, kind):
    assert reference(medium).kind == kind


def test_media_come_before_the_words_in_their_order():
    sample = ask(["a.png", "b.mp4"], "Which?")
    assert [(part.media, part.text) for part in sample.messages[0].parts] == [(0, None), (1, None), (None, "Which?")]
    assert [ref.kind for ref in sample.media] == ["image", "video"]


def test_what_cannot_be_asked_is_one_line(reasoner, tmp_path):
    with pytest.raises(DataError, match=r"notes.txt: its ending does not tell"):
        reasoner.answer("notes.txt", "Which?")
    with pytest.raises(MediaError, match=r"image gone.png"):
        reasoner.answer(tmp_path / "gone.png", "Which?")
    with pytest.raises(ConfigError, match=r"did you mean 'greedy'"):
        reasoner.answer([], "Which?", "gredy")


def test_a_medium_that_the_model_does_not_take_is_one_line(reasoner, tmp_path):
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(3200))
    with pytest.raises(DataError, match=r"question: .*this model takes no audio"):
        reasoner.answer(tmp_path / "tone.wav", "What is heard?")


class Counted(HFEngine):
    closed = 0

    def close(self):
        self.closed += 1


def test_the_engine_is_closed_at_the_end_of_a_with_block_also_where_a_question_fails(reasoner):
    own = reasoner.runner.engine
    engine = Counted(own.model, own.network.family, own.features, batch_size=8, deterministic=False)
    with replace(reasoner, runner=replace(reasoner.runner, engine=engine)) as closing:
        assert closing.answer([], "Which digit?").tokens > 0
        assert engine.closed == 0
    assert engine.closed == 1
    with pytest.raises(DataError), closing:
        closing.answer("notes.txt", "Which?")
    assert engine.closed == 2
