"""Every family against transformers' own processors, positions and forward, on tiny random checkpoints."""

import families
import numpy as np
import pytest
import torch
from safetensors import safe_open

from mmrl.cache.features import FeatureCache
from mmrl.errors import ConfigError
from mmrl.models.load import find_kind, load_checkpoint, refuse_sliding
from mmrl.protocols import Request
from mmrl.rollout.engine_hf import HFEngine
from mmrl.train.engine import TorchEngine
from mmrl.types import CoordinateFrame, Media, Message, Part, Row, ToolCall

FAMILIES = list(families.WRITERS)
SEEING = [name for name in FAMILIES if name != "qwen2_audio"]
HEARING = ["qwen2_audio", "qwen2_5_omni"]
MROPE_VIDEO = ["qwen2_vl", "qwen2_5_vl"]
"""transformers 5.19 and 5.20 give videos of these families other positions than the original Qwen and vLLM."""
HUB_NAMES = {
    "qwen2_vl": ("model.layers.0.self_attn.q_proj.weight", "visual.patch_embed.proj.weight", "lm_head.weight"),
    "qwen2_5_vl": ("model.embed_tokens.weight", "model.norm.weight", "visual.merger.ln_q.weight"),
    "qwen3_vl": ("model.language_model.norm.weight", "model.visual.pos_embed.weight"),
    "qwen3_5": ("model.language_model.layers.0.linear_attn.A_log", "model.visual.merger.norm.weight"),
    "qwen2_audio": (
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
        "audio_tower.conv1.weight",
        "multi_modal_projector.linear.weight",
    ),
    "qwen2_5_omni": (
        "thinker.model.embed_tokens.weight",
        "thinker.visual.patch_embed.proj.weight",
        "thinker.audio_tower.proj.weight",
    ),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """loaded(name) is the family's checkpoint, written once and loaded as any other."""
    root, found = tmp_path_factory.mktemp("families"), {}

    def load(name):
        if name not in found:
            path = families.write(name, root / name)
            found[name] = (load_checkpoint(path, family=None, dtype="float32", device="cpu"), path)
        return found[name][0]

    load.path = lambda name: found[name][1] if load(name) else None
    return load


def side(name):
    return 32 if name.startswith("qwen3") else 28


def image(name, seed, w=2, h=2):
    size = (w * side(name), h * side(name))
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Media(kind="image", key=f"image-{seed}", data=pixels, frame=frame(size), original=pixels)


def video(name, seed, steps, fps=2.0, w=2, h=2):
    size = (w * side(name), h * side(name))
    frames = np.random.default_rng(seed).integers(0, 256, (2 * steps, size[1], size[0], 3), dtype=np.uint8)
    times = tuple(number / fps for number in range(2 * steps))
    return Media(kind="video", key=f"video-{seed}", data=frames, frame=frame(size), times=times)


def audio(seed, seconds):
    samples = np.random.default_rng(seed).normal(0, 0.1, round(16000 * seconds)).astype(np.float32)
    return Media(kind="audio", key=f"audio-{seed}", data=samples, span=(0.0, seconds))


def frame(size):
    return CoordinateFrame(original=size, seen=size)


def prompt(*media, heard=False):
    parts = [Part(media=0, sound=1)] if heard else [Part(media=number) for number in range(len(media))]
    spread = [piece for part in parts for piece in (Part(text="This is "), part)]
    return [Message(role="user", parts=(*spread, Part(text="What is this?")))]


def their_inputs(name, checkpoint, media, ids, heard=False):
    """What transformers' own processors make of the same media, for its own forward."""
    processor, inputs, fixed = checkpoint.processor, {}, {"do_resize": False, "return_tensors": "pt"}
    images = [torch.from_numpy(m.data).permute(2, 0, 1) for m in media if m.kind == "image"]
    videos = [torch.from_numpy(m.data).permute(0, 3, 1, 2) for m in media if m.kind == "video"]
    sounds = [m.data for m in media if m.kind == "audio"]
    if images:
        inputs |= processor.image_processor(images, **fixed)
    if videos:
        inputs |= processor.video_processor(videos, do_sample_frames=False, **fixed)
        inputs.pop("video_metadata", None)
    if name == "qwen2_5_omni" and videos:
        inputs["video_second_per_grid"] = torch.tensor([2 * (m.times[1] - m.times[0]) for m in media if m.times])
        inputs["use_audio_in_video"] = heard
    if sounds:
        found = processor.feature_extractor(
            sounds, sampling_rate=16000, return_attention_mask=True, padding="max_length", return_tensors="pt"
        )
        inputs |= {"input_features": found.input_features, "feature_attention_mask": found.attention_mask}
    if name not in HEARING:
        config = checkpoint.model.config
        kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        inputs["mm_token_type_ids"] = kinds
    return inputs


def mixtures(name):
    """Media of a prompt, by what the family takes."""
    if name == "qwen2_audio":
        return [[audio(0, 1.0)], [audio(0, 0.31), audio(1, 2.0)]]
    cases = [[], [image(name, 0), image(name, 1, 3, 1)], [video(name, 2, 3)], [image(name, 0), video(name, 3, 2)]]
    return [*cases, [image(name, 0), video(name, 4, 2), audio(5, 1.3)]] if name in HEARING else cases


CASES = [(name, number) for name in FAMILIES for number in range(len(mixtures(name)))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_log_probs_equal_those_of_transformers_own_forward(loaded, name, number):
    assert_equals_transformers(name, loaded(name), mixtures(name)[number])


@pytest.mark.parametrize(("steps", "seconds"), [(2, 2.0), (5, 4.7), (4, 1.0), (2, 5.0)])
def test_a_heard_video_equals_transformers_own_forward(loaded, steps, seconds):
    media = [video("qwen2_5_omni", 1, steps), audio(2, seconds)]
    assert_equals_transformers("qwen2_5_omni", loaded("qwen2_5_omni"), media, heard=True)


def assert_equals_transformers(name, checkpoint, media, heard=False):
    family, model = checkpoint.family, checkpoint.model
    tokens = family.encode_prompt(prompt(*media, heard=heard), media, ())
    answer = np.random.default_rng(1).integers(0, 200, 9)
    ids_T = np.concatenate([tokens.ids, answer])
    target = np.arange(len(tokens.ids), len(ids_T))
    whole = type(tokens)(ids=tuple(ids_T.tolist()), spans=tokens.spans)
    positions = family.positions(whole)
    row = Row(ids_T=ids_T, positions_3T=positions, spans=tokens.spans, source_N=target - 1, target_N=ids_T[target])
    engine = TorchEngine(model, family, None, micro_batch_tokens=10**6, max_grad_norm=1.0)
    short = Row(
        ids_T=ids_T[: len(tokens.ids) + 2],
        positions_3T=positions[:, : len(tokens.ids) + 2],
        spans=tokens.spans,
        source_N=target[:2] - 1,
        target_N=ids_T[target[:2]],
    )
    ours = engine.logprobs([row, short], {m.key: m for m in media})  # rows of two lengths
    ids_1T = torch.from_numpy(ids_T)[None]
    inputs = their_inputs(name, checkpoint, media, ids_1T, heard)
    if name in MROPE_VIDEO and any(m.kind == "video" for m in media):
        inputs["position_ids"] = torch.from_numpy(positions)[:, None]
    with torch.no_grad():
        logits = model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), **inputs).logits[0]
    logits[:, list(family.reserved_ids)] = float("-inf")
    theirs = torch.log_softmax(logits[torch.from_numpy(target - 1)], -1)
    theirs = theirs.gather(1, torch.from_numpy(ids_T[target])[:, None])[:, 0]
    torch.testing.assert_close(ours, torch.cat([theirs, theirs[:2]]).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_rollout_and_training_give_the_same_log_probs_over_two_turns(loaded, name, number):
    """Prefill, decoding, and a second turn with more media, against one forward over the whole."""
    import asyncio

    checkpoint, media = loaded(name), mixtures(name)[number]
    family = checkpoint.family
    engine = HFEngine(
        checkpoint.model, family, FeatureCache(checkpoint.model, family), batch_size=8, deterministic=True
    )
    more = [audio(9, 0.5)] if name == "qwen2_audio" else [image(name, 9)]
    first = family.encode_prompt(prompt(*media), media, ())
    other = family.encode_prompt([Message(role="user", parts=(Part(text="What?"),))], (), ())
    observation = family.extend(Message(role="tool", parts=(Part(media=0), Part(text="seen"))), more, closed=True)

    async def play():
        names = [("0/0", first, media), ("0/1", first, media), ("1/0", other, [])]
        for episode, _, _ in names:
            engine.open(episode, "0")
        done = await asyncio.gather(*(ask(e, tokens, m, 3 + n) for n, (e, tokens, m) in enumerate(names)))
        again = await asyncio.gather(*(ask(e, observation, more, 4 - n) for n, (e, _, _) in enumerate(names)))
        for episode, _, _ in names:
            engine.release(episode)
        return [(tokens, a, b) for (_, tokens, _), a, b in zip(names, done, again, strict=True)]

    async def ask(episode, tokens, shown, length):
        row, sibling = (int(part) for part in episode.split("/"))
        return await engine.generate(
            Request(
                episode=episode,
                group=str(row),
                order=(row, sibling),
                new=tokens,
                media=tuple(shown),
                seed=row * 10 + sibling,
                max_tokens=length,
                temperature=1.0,
            )
        )

    from mmrl.train.rows import build_row
    from mmrl.types import Segment, Source, StopReason, Trajectory

    everything = {m.key: m for m in (*media, *more)}
    trainer = TorchEngine(checkpoint.model, family, None, micro_batch_tokens=10**6, max_grad_norm=1.0)
    rows, theirs = [], []
    for tokens, a, b in asyncio.run(play()):
        segments = (
            Segment(source=Source.PROMPT, ids=tokens.ids, spans=tokens.spans),
            Segment(source=Source.MODEL, ids=a.ids, logprobs=a.logprobs),
            Segment(source=Source.OBSERVATION, ids=observation.ids, spans=observation.spans),
            Segment(source=Source.MODEL, ids=b.ids, logprobs=b.logprobs),
        )
        trajectory = Trajectory(sample_id="s", index=0, segments=segments, turns=(), stop=StopReason.ANSWERED)
        rows.append(build_row(trajectory, family))
        theirs += [*a.logprobs, *b.logprobs]
    torch.testing.assert_close(trainer.logprobs(rows, everything), torch.tensor(theirs).double(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SEEING)
def test_a_video_encoded_step_by_step_equals_one_encoded_whole(loaded, name):
    checkpoint, medium = loaded(name), video(name, 0, 4)
    with torch.no_grad():
        whole = checkpoint.family.encode_media(checkpoint.model, [medium])[0]
    cache = FeatureCache(checkpoint.model, checkpoint.family)
    torch.testing.assert_close(cache.encode([medium])[medium.key], whole, rtol=0, atol=1e-5)


def test_a_denser_look_encodes_only_what_is_new(loaded):
    checkpoint, dense = loaded("qwen2_5_vl"), video("qwen2_5_vl", 0, 4)
    pairs = dense.data.reshape(4, 2, *dense.data.shape[1:])
    sparse = Media(
        kind="video",
        key="sparse",
        data=pairs[::2].reshape(4, *dense.data.shape[1:]),
        frame=dense.frame,
        times=dense.times[:2] + dense.times[4:6],
    )
    cache = FeatureCache(checkpoint.model, checkpoint.family)
    few = cache.encode([sparse])["sparse"]
    assert cache.encoded == 2
    many = cache.encode([dense])[dense.key]
    assert cache.encoded == 4
    assert torch.equal(many.view(4, 4, -1)[::2], few.view(2, 4, -1))


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_written_under_the_names_of_the_hubs_files(loaded, name):
    loaded(name)
    with safe_open(loaded.path(name) / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert set(HUB_NAMES[name]) <= names
    assert not any(entry.startswith(("model.model.", "model.audio_tower.", "thinker.thinker.")) for entry in names)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_that_is_written_again_holds_the_same_weights(loaded, name, tmp_path):
    checkpoint = loaded(name)
    checkpoint.save(tmp_path)
    again = load_checkpoint(tmp_path, family=None, dtype="float32", device="cpu")
    ours, theirs = checkpoint.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert again.config.model_type == checkpoint.config.model_type == name


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "qwen3_5_moe", "qwen3_omni_moe", "llava"])
def test_an_unsupported_family_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"model family '{name}' is not supported"):
        find_kind(name)


TURNS = [
    Message(role="system", parts=(Part(text="Be brief."),)),
    Message(role="user", parts=(Part(text="Weather in Rome?"),)),
    Message(role="assistant", tool_calls=(ToolCall(name="weather", arguments={"city": "Rome"}),)),
    Message(role="tool", parts=(Part(text="21 C"),)),
    Message(
        role="assistant", parts=(Part(text="I look again."),), tool_calls=(ToolCall(name="f", arguments={"x": 1}),)
    ),
    Message(role="tool", parts=(Part(text="70 F"),)),
]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "qwen3_5"])
def test_earlier_calls_and_results_are_written_as_the_exported_template_writes_them(loaded, name):
    family, tokenizer = loaded(name).family, loaded(name).tokenizer
    turns = [
        {
            "role": message.role,
            "content": message.text,
            "tool_calls": [
                {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in message.tool_calls
            ],
        }
        for message in TURNS
    ]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(family.encode_prompt(TURNS, (), ()).ids) == rendered


@pytest.mark.parametrize(
    ("written", "behind"),
    [
        ("<think>It is 7.</think><answer>7</answer>", "It is 7.</think><answer>7</answer>"),
        ("<think>\nIt is 7.\n</think>\n\n<answer>7</answer>", "It is 7.\n</think>\n\n<answer>7</answer>"),
        ("<answer>7</answer>", "\n</think>\n\n<answer>7</answer>"),
    ],
)
def test_a_turn_goes_on_behind_a_header_that_opens_the_thought(loaded, written, behind):
    family = loaded("qwen3_5").family
    assert family.decode(family.encode_turn(Message(role="assistant", parts=(Part(text=written),)))) == behind


@pytest.mark.parametrize("name", [name for name in SEEING if name != "qwen2_5_omni"])
def test_a_video_with_its_sound_is_refused_where_the_family_cannot_hear(loaded, name):
    with pytest.raises(ValueError, match="no video together with its sound"):
        loaded(name).family.encode_prompt(prompt(heard=True), [video(name, 0, 2), audio(0, 1.0)], ())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_config_names_its_architecture(name, loaded):
    checkpoint = loaded(name)
    expected = "Qwen2_5OmniModel" if name == "qwen2_5_omni" else checkpoint.kind.model
    assert checkpoint.config.architectures == [expected]


def test_sliding_windows_are_refused():
    config = type("Config", (), {"layer_types": ["full_attention", "sliding_attention"]})()
    with pytest.raises(ConfigError, match="sliding windows"):
        refuse_sliding(config)
