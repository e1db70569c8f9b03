import copy

import pytest
import torch

from mmrl.config import OptimizerSection
from mmrl.errors import MmrlError
from mmrl.train import checkpoint as checkpoints
from mmrl.train.optim import build_optimizer, select_parameters


def state(step, metric=None, stage=0):
    return checkpoints.State(
        stage=stage, stage_name="grpo", step=step, position=7 * step, train_seconds=1.5, metric=metric
    )


@pytest.fixture
def trained(checkpoint):
    """(parameters, optimiser) of a copy that has made one step."""
    model = copy.deepcopy(checkpoint.model)
    parameters = select_parameters(model, ["model.language_model.norm.*"], [])
    optimizer = build_optimizer(parameters, OptimizerSection(lr={"start": 0.1}))
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return parameters, optimizer


@pytest.fixture
def save(checkpoint, trained, tmp_path):
    return lambda *arguments, **options: checkpoints.save(tmp_path, checkpoint, *trained, state(*arguments, **options))


def test_state_and_optimiser_come_back_to_the_bit(save, trained):
    path = save(3, 0.5)
    parameters, optimizer = trained
    fresh = build_optimizer(parameters, OptimizerSection(lr={"start": 0.1}))
    checkpoints.restore(path, parameters, fresh)
    assert checkpoints.read_state(path) == state(3, 0.5)
    for parameter in parameters.values():
        assert optimizer.state[parameter].keys() == fresh.state[parameter].keys()
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(value, fresh.state[parameter][key])


def test_float32_copies_of_bfloat16_weights_come_back_and_training_goes_on_alike(tmp_path, checkpoint):
    def part(values):
        parameters = {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}
        return parameters, build_optimizer(parameters, OptimizerSection(lr={"start": 0.1}))

    def step(parameters, optimizer, number):
        for place, parameter in enumerate(parameters.values()):
            generator = torch.Generator().manual_seed(10 * number + place)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 1e-4
        optimizer.step()

    straight = part({"a": torch.rand(8, 4).bfloat16(), "b": torch.rand(4).bfloat16()})
    step(*straight, 0)
    path = checkpoints.save(tmp_path, checkpoint, *straight, state(1))
    resumed = part({name: value.detach() for name, value in straight[0].items()})
    checkpoints.restore(path, *resumed)
    for number in range(1, 20):
        step(*straight, number)
        step(*resumed, number)
    for name, parameter in straight[0].items():
        assert torch.equal(resumed[0][name], parameter)
        own, found = straight[1].state[parameter], resumed[1].state[resumed[0][name]]
        assert own.keys() == found.keys() == {"step", "exp_avg", "exp_avg_sq", "master"}
        assert all(torch.equal(own[key], found[key]) for key in own)
        assert not torch.equal(own["master"], parameter.float())  # it knows more than the weights show


def test_transformers_loads_the_model_folder_and_its_template_knows_tools(save, checkpoint):
    from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    path = save(1) / "model"
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    for name, value in checkpoint.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    text = AutoTokenizer.from_pretrained(path).apply_chat_template(
        [{"role": "user", "content": "Q"}], tools=[{"type": "function", "function": {"name": "zoom"}}], tokenize=False
    )
    assert '"name": "zoom"' in text
    assert AutoProcessor.from_pretrained(path).image_processor is not None


def test_a_folder_without_manifest_is_no_checkpoint(save, tmp_path):
    first, second = save(1), save(2)
    (second / "manifest.json").unlink()
    assert checkpoints.complete(tmp_path) == [first]


def test_a_write_that_is_interrupted_leaves_the_last_checkpoint(save, tmp_path, monkeypatch):
    first = save(1)
    monkeypatch.setattr(checkpoints, "write_atomic", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(2)
    assert checkpoints.complete(tmp_path) == [first]
    monkeypatch.undo()
    assert checkpoints.complete(tmp_path) == [first]
    assert save(2) in checkpoints.complete(tmp_path)


def test_damage_names_the_file(save):
    path = save(1)
    file = path / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(MmrlError, match="optimizer.safetensors: missing or damaged"):
        checkpoints.verify(path)


def test_pruning_keeps_the_newest_and_the_best(save, tmp_path):
    for step, metric in ((1, 0.2), (2, 0.9), (3, 0.3), (4, None), (5, 0.9)):
        save(step, metric)
    checkpoints.prune(tmp_path, keep=2)
    assert [checkpoints.read_state(path).step for path in checkpoints.complete(tmp_path)] == [2, 4, 5]
    assert checkpoints.best_metric(tmp_path) == 0.9
    assert checkpoints.read_state(tmp_path / "best").step == 2
    assert checkpoints.read_state(tmp_path / "last").step == 5


def test_checkpoints_are_ordered_by_stage_then_step(save, tmp_path):
    for stage, step in ((1, 5), (0, 100), (1, 40)):
        save(step, stage=stage)
    found = [(s.stage, s.step) for s in map(checkpoints.read_state, checkpoints.complete(tmp_path))]
    assert found == [(0, 100), (1, 5), (1, 40)]
