"""Adapters against the formula, peft's own models and transformers' own loading."""

import contextlib
import copy
import json
import warnings
from dataclasses import replace

import families
import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from mmrl.config import LoraSection
from mmrl.errors import ConfigError
from mmrl.models.load import load_checkpoint
from mmrl.models.lora import (
    CONFIG,
    adapter_parameters,
    add_adapter,
    holding,
    read_adapter,
    target_layers,
    write_adapter,
)
from mmrl.train.engine import TorchEngine
from mmrl.types import CoordinateFrame, Media

FAMILIES = list(families.WRITERS)
EVERYWHERE = LoraSection(rank=4, alpha=8, targets=["*"])
PLAIN = {"family": None, "dtype": "float32", "device": "cpu"}
RNG = np.random.default_rng(0)
SIZE = (224, 224)  # fits patches of 14 and of 16 pixels
PICTURE = Media(
    kind="image",
    key="picture",
    data=RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
    frame=CoordinateFrame(original=SIZE, seen=SIZE),
)
SOUND = Media(kind="audio", key="sound", data=RNG.normal(0, 0.1, 8000).astype(np.float32), span=(0.0, 0.5))


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """base_of(name) is the folder of the family's tiny checkpoint."""
    root, written = tmp_path_factory.mktemp("families"), set()

    def path(name):
        if name not in written:
            families.write(name, root / name)
            written.add(name)
        return root / name

    return path


@pytest.fixture
def trained(base_of):
    """trained(name, section) is a checkpoint with an adapter whose weights are no longer those of its start."""

    def make(name, section=EVERYWHERE, **options):
        checkpoint = load_checkpoint(base_of(name), **(PLAIN | options), lora=section, seed=3)
        generator = torch.Generator().manual_seed(0)
        for parameter in adapter_parameters(checkpoint.model).values():
            parameter.data += torch.randn(parameter.shape, generator=generator).mul(0.05).to(parameter.dtype)
        return checkpoint

    return make


def outputs(model, checkpoint):
    """(logits of a text, features of a medium): what the text model and a tower compute."""
    ids = torch.tensor([[5, 17, 3, 250, 41, 8]])
    medium = SOUND if checkpoint.config.model_type == "qwen2_audio" else PICTURE
    with torch.no_grad():
        return model(input_ids=ids).logits, checkpoint.family.encode_media(model, [medium])[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_adapter_changes_nothing_and_no_name_outside_its_layers(base_of, name):
    before, after = load_checkpoint(base_of(name), **PLAIN), load_checkpoint(base_of(name), **PLAIN, lora=EVERYWHERE)
    for old, new in zip(outputs(before.model, before), outputs(after.model, after), strict=True):
        assert torch.equal(old, new)
    assert after.family.text_model(after.model).config is not None
    names = {n.replace(".base_layer", "") for n, _ in after.model.named_parameters() if ".lora_" not in n}
    assert names == {n for n, _ in before.model.named_parameters()}
    assert type(after.model.lm_head) is torch.nn.Linear


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_loads_what_is_saved_and_computes_the_same(trained, base_of, name, tmp_path):
    checkpoint = trained(name)
    checkpoint.save(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["adapter_model.safetensors"]
    assert (tmp_path / "tokenizer.json").is_file()
    assert not (tmp_path / "config.json").exists()
    base = load_checkpoint(base_of(name), **PLAIN)
    without = outputs(base.model, base)
    model = PeftModel.from_pretrained(base.model, tmp_path)  # a key that fits nowhere warns, and a warning fails here
    theirs = {n: p for n, p in model.named_parameters() if ".lora_" in n}
    ours = {f"base_model.model.{n}": p for n, p in adapter_parameters(checkpoint.model).items()}
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        assert torch.equal(value, ours[key])
    for expected, found, plain in zip(
        outputs(checkpoint.model, checkpoint), outputs(model.base_model.model, base), without, strict=True
    ):
        assert torch.allclose(expected, found, atol=1e-5)
        assert not torch.allclose(expected, plain, atol=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_loads_the_merged_model_and_computes_the_same(trained, name, tmp_path):
    checkpoint = trained(name)
    expected = outputs(checkpoint.model, checkpoint)
    replace(checkpoint, adapter=None).save(tmp_path)
    model = getattr(transformers, checkpoint.kind.model).from_pretrained(tmp_path, dtype=torch.float32)
    for ours, theirs in zip(expected, outputs(model, checkpoint), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_targets_every_linear_layer_of_the_text_model_has_one(base_of, name):
    checkpoint = load_checkpoint(base_of(name), **PLAIN)
    text = checkpoint.family.text_model(checkpoint.model)
    expected = {n for n, m in text.named_modules() if isinstance(m, torch.nn.Linear)}
    add_adapter(checkpoint.model, text, LoraSection(rank=2, alpha=2), base_of(name), 0)
    found = {n.partition(".lora_")[0] for n in adapter_parameters(checkpoint.model)}
    assert len(found) == len(expected) >= 4 * 7
    assert found == {n.partition(".lora_")[0] for n, p in checkpoint.model.named_parameters() if p.requires_grad}
    assert {n.partition(".lora_")[0] for n in adapter_parameters(text)} == expected


def test_a_layer_adds_the_scaled_product(trained):
    layer = trained("qwen2_5_vl").model.model.language_model.layers[1].mlp.up_proj
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = x @ (layer.base_layer.weight + 8 / 4 * b @ a).T
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_weights_come_back_to_the_bit_in_bfloat16(trained, tmp_path):
    checkpoint = trained("qwen2_5_vl", dtype="bfloat16")
    assert {p.dtype for p in checkpoint.model.parameters()} == {torch.bfloat16}
    checkpoint.save(tmp_path)
    again = load_checkpoint(tmp_path, family=None, dtype="bfloat16", device="cpu")
    assert {p.dtype for p in again.model.parameters()} == {torch.bfloat16}
    for name, value in checkpoint.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_saving_what_was_loaded_gives_the_same_files(trained, tmp_path):
    trained("qwen2_5_vl").save(tmp_path / "a")
    load_checkpoint(tmp_path / "a", **PLAIN).save(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_an_adapter_that_peft_trained_is_loaded(base_of, tmp_path):
    checkpoint = load_checkpoint(base_of("qwen2_5_vl"), **PLAIN)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, init_lora_weights=False)
    theirs = get_peft_model(checkpoint.model, config).eval()
    theirs.peft_config["default"].base_model_name_or_path = str(base_of("qwen2_5_vl"))
    theirs.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path, **PLAIN)
    ours.model.train()  # no dropout is left
    assert torch.equal(outputs(theirs, checkpoint)[0], outputs(ours.model, ours)[0])


def test_the_start_depends_on_the_seed_alone(base_of):
    def start(seed):
        torch.rand(seed + 1)  # whatever else was drawn before
        model = load_checkpoint(base_of("qwen2_5_vl"), **PLAIN, lora=EVERYWHERE, seed=seed).model
        return adapter_parameters(model)["model.language_model.layers.0.mlp.up_proj.lora_A.default.weight"]

    torch.manual_seed(0)
    first, state = start(1), torch.get_rng_state()
    torch.manual_seed(0)
    torch.rand(2)
    assert torch.equal(torch.get_rng_state(), state)  # and what is drawn after it is not disturbed
    assert torch.equal(start(1), first)
    assert not torch.equal(start(2), first)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["*.q_prj"], r"'\*.q_prj' is the whole name of no linear layer .* names look like 'model\."),
        (["*.q_proj", "lm_head"], "'lm_head' is the whole name of no linear layer .*head takes none"),
        (["*.norm"], "no linear layer"),
    ],
)
def test_targets_that_name_no_linear_layer_are_refused(checkpoint, targets, words):
    with pytest.raises(ConfigError, match=words):
        target_layers(checkpoint.model, checkpoint.family.text_model(checkpoint.model), targets)


def test_the_tower_is_trained_only_where_it_is_named(base_of):
    for targets, trains in ((None, False), (["*.q_proj"], False), (["*.q_proj", "model.visual.*.qkv"], True)):
        checkpoint = load_checkpoint(base_of("qwen2_5_vl"), **PLAIN, lora=LoraSection(rank=2, targets=targets))
        engine = TorchEngine(checkpoint.model, checkpoint.family, None, micro_batch_tokens=64, max_grad_norm=1.0)
        assert engine.trains_vision is trains


def test_values_are_held_for_a_while_and_given_back(trained):
    model = trained("qwen2_5_vl").model
    own, values = adapter_parameters(model), {n: torch.zeros_like(p) for n, p in adapter_parameters(model).items()}
    before = copy.deepcopy(own)
    pointers = {name: parameter.data_ptr() for name, parameter in own.items()}
    with contextlib.suppress(KeyboardInterrupt), holding(own, values):
        assert not any(parameter.any() for parameter in adapter_parameters(model).values())
        raise KeyboardInterrupt
    assert all(torch.equal(parameter, before[name]) for name, parameter in own.items())
    assert {name: parameter.data_ptr() for name, parameter in own.items()} == pointers
    assert not any(value.any() for value in values.values())


def damage(folder, **changes):
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model_name_or_path": None}, "base_model_name_or_path is no model"),
        (
            {"base_model_name_or_path": "/no/such/folder"},
            "base_model_name_or_path is no model .'/no/such/folder'.; write",
        ),
        ({"r": 3}, "does not fit the model: .*lora_A.* of another size"),
        ({"target_modules": ["q_proj"]}, "does not fit the model"),
        ({"peft_type": "IA3", "feedforward_modules": []}, "peft_type 'IA3' is not supported, only 'LORA' is"),
        ({"target_modules": ["query"]}, "does not fit the model: Target modules .*query"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(trained, tmp_path, changes, words):
    trained("qwen2_5_vl").save(tmp_path)
    damage(tmp_path, **changes)
    with pytest.raises(ConfigError, match=words):
        load_checkpoint(tmp_path, **PLAIN)


def test_a_configuration_that_asks_for_another_adapter_is_refused(trained, tmp_path):
    trained("qwen2_5_vl").save(tmp_path)
    assert load_checkpoint(tmp_path, **PLAIN, lora=LoraSection(rank=4, alpha=8)).adapter.r == 4
    with pytest.raises(ConfigError, match=r"model.lora: the adapter in .* has rank 4 and alpha 8, not 16 and 8"):
        load_checkpoint(tmp_path, **PLAIN, lora=LoraSection(rank=16, alpha=8))


def test_a_missing_weight_is_named(trained, tmp_path):
    checkpoint = trained("qwen2_5_vl")
    checkpoint.save(tmp_path)
    values = read_adapter(tmp_path)
    missing = values.popitem()[0]
    with pytest.raises(ConfigError, match=missing):
        write_adapter(checkpoint.model, values, tmp_path)


def test_an_adapter_on_the_head_is_refused(base_of, tmp_path):
    """Log-probs are computed from the head's own weight: what an adapter adds would be left out silently."""
    from peft import LoraConfig, get_peft_model

    base = base_of("qwen2_5_vl")
    model = load_checkpoint(base, **PLAIN).model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of it, too
        peft = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head", "q_proj"]))
        peft.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}))
    with pytest.raises(ConfigError, match="changes the head"):
        load_checkpoint(tmp_path / "adapter", **PLAIN)
