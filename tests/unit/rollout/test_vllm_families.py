"""vLLM's log-probs against the trainer's, for every family of checkpoints that it takes."""

import pytest
import torch
from vllm_play import VISION, assert_equal, change, open_engine, picture, play, sound, video, vision

from mmrl.config import LoraSection

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
    (sizes,) = engine.writer.llm.apply_model(tower_sizes)
    assert sum(sizes) == 0 or name == "qwen3_vl"


def tower_sizes(model):
    towers = ("visual", "audio_tower", "multi_modal_projector")
    return [sum(p.numel() for p in part.parameters()) for n, part in model.named_children() if n in towers]
