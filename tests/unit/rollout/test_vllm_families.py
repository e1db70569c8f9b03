"""vLLM's log-probs against the trainer's, for every family of checkpoints that it takes."""

import asyncio

import families
import pytest
import torch
from vllm_play import (
    EPISODE,
    SECTION,
    VISION,
    ask,
    assert_equal,
    change,
    open_engine,
    picture,
    play,
    sound,
    video,
    vision,
)

from mmrl.config import LoraSection
from mmrl.errors import ConfigError
from mmrl.models.load import load_checkpoint
from mmrl.rollout.open_vllm import open_vllm
from mmrl.rollout.vllm_prompt import describe
from mmrl.types import Message, Part, Tokens

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own

TEXT = {"text": ((), ())}
SOUND = {"audio": ((sound(7, 3.3),), ()), "heard": ((sound(8, 1.0),), (sound(9, 2.5),))}
CASES = {
    "qwen2_vl": TEXT | VISION,
    "qwen2_5_vl": TEXT | VISION,
    "qwen3_vl": TEXT | vision(32),
    "qwen2_audio": TEXT | SOUND,
    "qwen2_5_omni": TEXT | VISION | SOUND | {"mixed": ((sound(10, 2.0), picture(11)), (video(12, 6),))},
}


def test_an_adapter_is_written_with(tmp_path):
    checkpoint, engine = open_engine("qwen2_5_vl", tmp_path, lora=LoraSection(rank=4))
    for step in range(2):
        for name, parameter in checkpoint.model.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        engine.weights_changed(vision=False)
        assert_equal(checkpoint, play(engine, *VISION["turns"]), step)
    engine.close()


def test_what_an_adapter_is_trained_on_is_started_with(tmp_path):
    """A run that goes on finds the adapter alone in its checkpoint."""
    checkpoint, engine = open_engine("qwen2_5_vl", tmp_path, lora=LoraSection(rank=4))
    engine.close()
    checkpoint.save(tmp_path / "adapter")
    engine = open_vllm(checkpoint, engine.features, tmp_path / "adapter", SECTION, EPISODE, logs=tmp_path, tell=print)
    assert_equal(checkpoint, play(engine, *VISION["image"]))
    engine.close()


def test_a_group_that_is_nearly_finished_goes_first(tmp_path):
    """One is written at a time; of those that wait meanwhile, the one without siblings is first."""
    checkpoint, engine = open_engine("qwen2_5_vl", tmp_path, batch_size=1)
    order, words = [], Tokens(ids=checkpoint.family.encode_text("word " * 5))

    async def write(group, sibling, tokens=4):
        await ask(engine, sibling, 0, words, (), tokens, group)
        order.append(f"{group}/{sibling}")
        engine.release(f"{group}/{sibling}")

    async def write_all():
        names = [("0", 0), ("0", 1), ("1", 0)]
        for group, sibling in [*names, ("2", 0)]:
            engine.open(f"{group}/{sibling}", group)
        first = asyncio.create_task(write("2", 0, tokens=60))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, *(write(*name) for name in names))

    asyncio.run(write_all())
    engine.close()
    assert order[:2] == ["2/0", "1/0"]


def test_what_vllm_refuses_is_told_in_a_line(tmp_path):
    too_long = {"max_model_len": 1 << 20, "max_num_batched_tokens": 1 << 20}
    with pytest.raises(ConfigError, match=r"does not take these arguments: .*max_model_len \(1048576\) is greater"):
        open_engine("qwen2_5_vl", tmp_path, vllm=too_long)


def test_a_video_with_its_sound_is_refused(tmp_path):
    path = families.write("qwen2_5_omni", tmp_path / "model")
    family = load_checkpoint(path, family=None, dtype="float32", device="cpu").family
    seen, heard = video(0, 4), sound(1, 2.0)
    message = Message(role="user", parts=(Part(media=0, sound=1),))
    spans = family.encode_prompt([message], [seen, heard], ()).spans
    joined = next(span for span in spans if span.key == heard.key)
    with pytest.raises(ValueError, match="together with its sound"):
        describe(family, joined, heard, "name")


@pytest.fixture(scope="module", params=CASES)
def family(request, tmp_path_factory):
    """(name, checkpoint, engine), one at a time."""
    checkpoint, engine = open_engine(request.param, tmp_path_factory.mktemp("vllm"))
    yield request.param, checkpoint, engine
    engine.close()


def test_log_probs_equal_the_trainers_before_and_after_an_update(family):
    name, checkpoint, engine = family
    for case, shown in CASES[name].items():
        assert_equal(checkpoint, play(engine, *shown), case)
    change(checkpoint.model, 1)
    engine.weights_changed(vision=True)
    for case, shown in CASES[name].items():
        assert_equal(checkpoint, play(engine, *shown), case)


def test_no_tower_is_built_but_qwen3s(family):
    name, _, engine = family
    (sizes,) = engine.backend.llm.apply_model(tower_sizes)
    assert sum(sizes) == 0 or name == "qwen3_vl"


def tower_sizes(model):
    towers = ("visual", "audio_tower", "multi_modal_projector")
    return [sum(p.numel() for p in part.parameters()) for n, part in model.named_children() if n in towers]
