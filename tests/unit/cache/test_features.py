"""The feature cache: each part goes through a tower once, and its gradient comes back through that pass."""

import threading
from dataclasses import replace

import families
import numpy as np
import pytest
import torch

from mmrl.cache.disk import DiskTier, tower_version
from mmrl.cache.features import FeatureCache, chunks
from mmrl.models.load import load_checkpoint
from mmrl.types import CoordinateFrame, Media

SEEING = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen2_5_omni"]
HEARING = ["qwen2_audio", "qwen2_5_omni"]
WHOLE = 1 << 30
"""Tokens of a chunk that holds everything."""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """fresh(name) loads the family's checkpoint anew each time, in float32."""
    root = tmp_path_factory.mktemp("families")

    def load_anew(name):
        path = root / name
        if not path.exists():
            families.write(name, path)
        return load_checkpoint(path, family=None, dtype="float32", device="cpu")

    return load_anew


@pytest.fixture
def checkpoint(fresh):
    return fresh("qwen2_5_vl")


@pytest.fixture
def cache(checkpoint):
    """cache(...) is a new one of the Qwen2.5-VL checkpoint."""
    return lambda **options: FeatureCache(checkpoint.model, checkpoint.family, **options)


def picture(name, seed, w=2, h=2):
    return replace(video(name, [seed], w, h), kind="image", key=f"image-{seed}-{w}x{h}", data=step(name, seed, w, h)[0])


def video(name, seeds, w=2, h=2):
    """A video of one step for each seed."""
    data = np.concatenate([step(name, seed, w, h) for seed in seeds])
    size = (data.shape[2], data.shape[1])
    times = tuple(number / 2 for number in range(len(data)))
    key = f"video-{'-'.join(map(str, seeds))}-{w}x{h}"
    return Media(kind="video", key=key, data=data, frame=CoordinateFrame(original=size, seen=size), times=times)


def step(name, seed, w, h):
    side = 32 if name.startswith("qwen3") else 28
    return np.random.default_rng(seed).integers(0, 256, (2, h * side, w * side, 3), dtype=np.uint8)


def sound(seed, seconds):
    samples = np.random.default_rng(seed).normal(0, 0.1, round(16000 * seconds)).astype(np.float32)
    return Media(kind="audio", key=f"audio-{seed}", data=samples, span=(0.0, seconds))


def mixture(name):
    seen = [picture(name, 0, 5, 3), video(name, range(1, 7), 6, 5), picture(name, 7, 3, 6)]
    heard = [sound(8, 1.0), sound(9, 0.31), sound(10, 2.3)]
    return (seen if name in SEEING else []) + (heard if name in HEARING else [])


def passes(checkpoint):
    """A list that grows by the sizes of what goes into the vision tower."""
    sizes = []
    (tower,) = checkpoint.family.towers(checkpoint.model)
    tower.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    return sizes


@pytest.mark.parametrize("name", families.WRITERS)
def test_chunks_give_the_features_of_one_pass(fresh, name):
    """To the bit; convolutions over sound round otherwise where several are batched."""
    checkpoint, media = fresh(name), mixture(name)
    whole = FeatureCache(checkpoint.model, checkpoint.family, chunk_tokens=WHOLE).encode(media)
    for tokens in (1, 35):
        cache = FeatureCache(checkpoint.model, checkpoint.family, chunk_tokens=tokens)
        found = cache.encode(media)
        assert list(found) == [medium.key for medium in media]
        for medium in media:
            atol = 2e-6 if medium.kind == "audio" else 0
            torch.testing.assert_close(found[medium.key], whole[medium.key], rtol=0, atol=atol)
        assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("name", families.WRITERS)
def test_a_part_takes_no_fewer_tokens_than_it_gives(fresh, name):
    checkpoint, media = fresh(name), mixture(name)
    family = checkpoint.family
    found = FeatureCache(checkpoint.model, family).encode(media)
    for medium in media:
        given, taken = len(found[medium.key]), sum(family.tower_tokens(part) for part in family.parts(medium))
        assert taken == 750 >= given if name == "qwen2_audio" else taken == given


def test_a_long_video_goes_through_the_tower_in_chunks_of_frames(checkpoint, cache):
    sizes = passes(checkpoint)
    cache(chunk_tokens=10).encode([video("qwen2_5_vl", range(5))])  # steps of 4 tokens, 16 patches
    assert sizes == [32, 32, 16]


def test_chunks_are_filled_in_order():
    assert chunks([3, 3, 3, 9, 1, 2, 3], int, 6) == [[3, 3], [3], [9], [1, 2, 3]]
    assert chunks([0, 7], int, 6) == [[0], [7]]
    assert chunks([], int, 6) == []


def test_equal_steps_are_encoded_once_in_a_video_and_over_videos(cache):
    held = cache()
    still = held.encode([video("qwen2_5_vl", [1, 1, 2, 1])])["video-1-1-2-1-2x2"].view(4, 4, -1)
    assert held.encoded == 2
    assert torch.equal(still[0], still[1])
    assert torch.equal(still[0], still[3])
    found = held.encode([video("qwen2_5_vl", [2, 3]), video("qwen2_5_vl", [4, 3, 1])])
    assert held.encoded == 4
    assert torch.equal(found["video-2-3-2x2"][:4], still[2])
    assert torch.equal(found["video-2-3-2x2"][4:], found["video-4-3-1-2x2"][4:8])
    held.encode([video("qwen2_5_vl", [1, 1, 2, 1]), video("qwen2_5_vl", [2, 3])])
    assert held.encoded == 4


def test_no_media_have_no_features(cache):
    held = cache()
    assert held.encode([]) == {}
    leaves = held.leaves([])
    leaves.backward()
    assert leaves.features == {}
    assert held.encoded == 0


PICTURE_BYTES = 4 * 128 * 4
"""2 x 2 tokens of 128 floats."""


def test_the_least_recently_used_go_first(cache):
    a, b, c, d = (picture("qwen2_5_vl", seed) for seed in range(4))
    held = cache(memory_bytes=3 * PICTURE_BYTES)
    held.encode([a, b, c])
    held.encode([a])
    held.encode([d])
    assert held.num_bytes == 3 * PICTURE_BYTES
    assert held.encoded == 4
    held.encode([a, c, d])
    assert held.encoded == 4
    held.encode([b])
    assert held.encoded == 5


def test_media_beyond_the_limit_are_returned_and_not_kept(cache):
    media = [video("qwen2_5_vl", range(4)), picture("qwen2_5_vl", 9)]
    whole, held = cache().encode(media), cache(memory_bytes=PICTURE_BYTES)
    for times in (1, 2):
        found = held.encode(media)
        assert all(torch.equal(found[key], whole[key]) for key in whole)
        assert held.num_bytes <= PICTURE_BYTES
        assert held.encoded in (5 * times, 5 * times - times + 1)  # one of the five is found again
    held = cache(memory_bytes=0)
    assert held.encode(media).keys() == whole.keys()
    assert held.num_bytes == 0


def test_a_video_of_which_a_step_is_gone_encodes_that_step_only(cache):
    held = cache(memory_bytes=4 * PICTURE_BYTES)
    clip = video("qwen2_5_vl", range(4))
    first = held.encode([clip])[clip.key]
    held.encode([picture("qwen2_5_vl", 9)])
    # One step alone is not computed in the order in which four are.
    torch.testing.assert_close(held.encode([clip])[clip.key], first, rtol=1e-5, atol=1e-5)
    assert held.encoded == 6


@pytest.mark.parametrize("name", families.WRITERS)
def test_features_keep_no_larger_tensor_alive(fresh, name):
    checkpoint = fresh(name)
    cache = FeatureCache(checkpoint.model, checkpoint.family)
    with cache.tracked():
        cache.encode(mixture(name)[:2])
    cache.encode(mixture(name))
    held = cache.encode([medium for medium in mixture(name) if medium.kind != "video"])
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in held.values())


def test_live_parts_are_never_evicted(cache):
    clip, other = video("qwen2_5_vl", range(3)), picture("qwen2_5_vl", 9)
    held = cache(memory_bytes=PICTURE_BYTES)
    with held.tracked():
        held.encode([clip])
    held.encode([other])
    held.encode([clip])
    leaves = held.leaves([clip])
    assert held.encoded == 4
    leaves.features[clip.key].sum().backward()
    leaves.backward()
    held.encode([other])  # now they go
    assert held.num_bytes <= PICTURE_BYTES


def looks(name):
    """Looks at two videos that share steps, and a picture."""
    return [
        video(name, [0, 2, 4], 3, 2),
        video(name, [0, 1, 2, 3, 4, 4], 3, 2),
        picture(name, 5, 4, 1),
        video(name, [6, 7], 3, 2),
    ]


def weights(features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(value.shape, generator=generator).to(value) for key, value in features.items()}


def gradients(checkpoint):
    found = {name: p.grad for name, p in checkpoint.model.named_parameters() if p.grad is not None}
    checkpoint.model.zero_grad(set_to_none=True)
    return found


def plain(checkpoint, media, skipped=(), *, apart=True):
    """Gradients of one encoding and one backward, without any cache; and the features.

    Args:
        apart: parts are encoded apart from one another, equal ones once; False gives the tower whole videos.
    """
    family, model = checkpoint.family, checkpoint.model
    parts = {medium.key: family.parts(medium) if apart else (medium,) for medium in media}
    once = {part.key: part for group in parts.values() for part in group}
    encoded = dict(zip(once, family.encode_media(model, list(once.values())), strict=True))
    features = {key: torch.cat([encoded[part.key] for part in group]) for key, group in parts.items()}
    given = weights(features)
    used = [key for key in features if key not in skipped]
    sum((features[key] * given[key]).sum() + features[key].sin().sum() for key in used).backward()
    return gradients(checkpoint), {key: value.detach() for key, value in features.items()}


def step_on(leaves, skipped=()):
    """Two micro-batches that use the leaves, then the backward through the towers."""
    given = weights(leaves.features)
    for key, leaf in leaves.features.items():
        if key not in skipped:
            (leaf * given[key]).sum().backward()
            leaf.sin().sum().backward()
    leaves.backward()


def assert_equal(ours, theirs, tolerance=1e-11):
    """The norm of each difference, by that of the largest value."""
    assert ours.keys() == theirs.keys()
    largest = max(float(value.norm()) for value in theirs.values())
    assert largest > 0
    assert max(float((ours[key] - theirs[key]).norm()) for key in theirs) <= tolerance * largest


@pytest.mark.parametrize("chunk_tokens", [1, 15, WHOLE])
@pytest.mark.parametrize("name", SEEING)
def test_gradients_are_those_of_one_encoding_and_backward(fresh, name, chunk_tokens):
    """In float64; over looks that share steps, encoded by rollouts in part and by the step for the rest."""
    checkpoint, media = fresh(name), looks(name)
    checkpoint.model.double().train()
    cache = FeatureCache(checkpoint.model, checkpoint.family, chunk_tokens=chunk_tokens)
    with cache.tracked():
        first = cache.encode(media[:1])
        cache.encode(media[1:2])
    assert not first[media[0].key].requires_grad
    assert cache.encoded == 5
    leaves = cache.leaves(media)
    assert cache.encoded == 8
    step_on(leaves, skipped=[media[3].key])
    ours, skipped = gradients(checkpoint), [media[3].key]
    assert leaves.features[media[3].key].grad is None
    theirs, features = plain(checkpoint, media, skipped)
    assert_equal(ours, theirs)
    assert_equal({key: value.detach() for key, value in leaves.features.items()}, features)
    whole, _ = plain(checkpoint, media, skipped, apart=False)
    assert_equal(ours, whole, 1e-6)  # rotary embeddings, and their gradients, are in float32


@pytest.mark.parametrize(
    ("name", "chunk_tokens"), [("qwen2_audio", 1000), ("qwen2_5_omni", 20), ("qwen2_5_omni", WHOLE)]
)
def test_gradients_of_sounds_are_those_of_one_encoding_and_backward(fresh, name, chunk_tokens):
    checkpoint, media = fresh(name), mixture(name)[-2:]
    checkpoint.model.double().train()
    cache = FeatureCache(checkpoint.model, checkpoint.family, chunk_tokens=chunk_tokens)
    with cache.tracked():
        cache.encode(media[-1:])
    step_on(cache.leaves(media))
    ours = gradients(checkpoint)
    assert_equal(ours, plain(checkpoint, media)[0])


def test_a_frozen_tower_beside_a_trained_one_is_given_no_gradient(fresh):
    name = "qwen2_5_omni"
    checkpoint, media = fresh(name), mixture(name)
    visual, audio = checkpoint.family.towers(checkpoint.model)
    audio.requires_grad_(False)
    cache = FeatureCache(checkpoint.model, checkpoint.family)
    leaves = cache.leaves(media)
    assert [leaf.requires_grad for leaf in leaves.features.values()] == [True, True, True, False, False, False]
    sum(leaf.sum() for leaf in leaves.features.values()).backward()
    leaves.backward()
    assert all(p.grad is not None for p in visual.parameters())
    assert all(p.grad is None for p in audio.parameters())


def test_rollouts_and_the_step_share_one_pass(checkpoint, cache):
    sizes, media = passes(checkpoint), looks("qwen2_5_vl")
    held = cache(chunk_tokens=WHOLE)
    with held.tracked():
        rolled = held.encode(media)
    again = held.encode(media)
    leaves = held.leaves(media)
    step_on(leaves)
    assert len(sizes) == 1
    for key in rolled:
        assert torch.equal(rolled[key], again[key])
        assert torch.equal(rolled[key], leaves.features[key])


def test_what_was_held_before_is_encoded_once_more_for_its_graph(cache):
    clip = video("qwen2_5_vl", range(3))
    held = cache()
    held.encode([clip])
    with held.tracked():
        held.encode([clip])
    assert held.encoded == 3
    held.leaves([clip])
    held.leaves([clip])
    assert held.encoded == 6
    assert held.num_bytes == 3 * PICTURE_BYTES


def test_the_backward_holds_one_chunk_at_a_time(checkpoint, cache):
    """The first is kept; the others are computed again one by one, each followed by its own backward."""
    (tower,) = checkpoint.family.towers(checkpoint.model)
    events = []
    tower.register_forward_pre_hook(lambda module, given: events.append(f"forward {len(given[0])}"))
    tower.patch_embed.register_full_backward_pre_hook(lambda *_: events.append("backward"))
    held = cache(chunk_tokens=8)
    leaves = held.leaves([video("qwen2_5_vl", range(5))])
    assert events == ["forward 32", "forward 32", "forward 16"]
    events.clear()
    leaves.features["video-0-1-2-3-4-2x2"].sum().backward()
    leaves.backward()
    assert events == ["forward 16", "backward", "forward 32", "backward", "backward"]


def test_the_activations_of_many_small_encodings_are_not_all_kept(checkpoint, cache):
    """Those of a chunk are; the rest is computed again."""
    sizes = passes(checkpoint)
    held = cache(chunk_tokens=10)
    media = [picture("qwen2_5_vl", seed) for seed in range(4)]
    with held.tracked():
        for medium in media:
            held.encode([medium])
    leaves = held.leaves(media)
    assert sizes == [16] * 4
    step_on(leaves)
    assert sizes == [16] * 6
    leaves = held.leaves(media[:2])  # room again
    step_on(leaves)
    assert sizes == [16] * 6 + [32]


def test_a_model_that_checkpoints_its_layers_and_trains_by_then_gives_the_same(fresh):
    name = "qwen2_5_vl"
    checkpoint, media = fresh(name), looks(name)
    checkpoint.model.double()
    theirs, _ = plain(checkpoint, media)
    checkpoint.model.gradient_checkpointing_enable()
    cache = FeatureCache(checkpoint.model, checkpoint.family, chunk_tokens=8)
    checkpoint.model.eval()
    with cache.tracked():
        cache.encode(media)
    checkpoint.model.train()
    (tower,) = checkpoint.family.towers(checkpoint.model)
    step_on(cache.leaves(media))
    assert tower.training
    assert tower.blocks[0].training
    assert_equal(gradients(checkpoint), theirs)


def test_a_rollout_thread_without_gradients_leaves_a_graph(cache):
    clip, held = video("qwen2_5_vl", range(3)), cache()

    def roll():
        with torch.no_grad():
            held.encode([clip])

    with held.tracked():
        thread = threading.Thread(target=roll)
        thread.start()
        thread.join()
    leaves = held.leaves([clip])
    assert held.encoded == 3
    assert leaves.features[clip.key].requires_grad


@pytest.fixture
def at_the_first_pass(checkpoint):
    """at_the_first_pass(work): a thread does it while something goes through the tower for the first time; it gets half
    a second there. Returns what joins the thread and raises what it raised."""
    (tower,) = checkpoint.family.towers(checkpoint.model)
    threads = []

    def arrange(work):
        failures = []

        def run():
            try:
                work()
            except Exception as error:
                failures.append(error)

        def meet(module, given):
            if not threads:
                threads.append(threading.Thread(target=run))
                threads[0].start()
                threads[0].join(0.5)

        tower.register_forward_pre_hook(meet)

        def end():
            threads[0].join()
            assert failures == []

        return end

    return arrange


def test_what_two_threads_ask_for_at_once_is_encoded_once(cache, at_the_first_pass):
    clip, held = video("qwen2_5_vl", range(3)), cache()
    found = []
    end = at_the_first_pass(lambda: found.append(held.encode([clip])))
    found.append(held.encode([clip]))
    end()
    assert held.encoded == 3
    assert held.num_bytes == 3 * PICTURE_BYTES
    assert torch.equal(found[0][clip.key], found[1][clip.key])


@pytest.mark.parametrize("method", ["encode", "leaves"])
def test_what_one_thread_needs_no_other_evicts(cache, at_the_first_pass, method):
    a, b, others = picture("qwen2_5_vl", 0), picture("qwen2_5_vl", 1), video("qwen2_5_vl", range(2, 5))
    held = cache(memory_bytes=PICTURE_BYTES)
    held.encode([a])
    end = at_the_first_pass(lambda: getattr(held, method)([others]))
    assert held.encode([a, b]).keys() == {a.key, b.key}
    end()


@pytest.mark.parametrize("forget", [FeatureCache.clear, lambda held: held.leaves([]).backward()])
def test_no_thread_forgets_what_another_is_about_to_use(cache, at_the_first_pass, forget):
    a, b, held = picture("qwen2_5_vl", 0), picture("qwen2_5_vl", 1), cache()
    held.leaves([a])
    end = at_the_first_pass(lambda: forget(held))
    assert held.leaves([a, b]).features.keys() == {a.key, b.key}
    end()


def test_tracking_ends_with_the_rollouts_even_when_they_fail(cache):
    clip, held = video("qwen2_5_vl", range(3)), cache()
    with pytest.raises(ValueError, match="rollouts"), held.tracked():
        raise ValueError("rollouts")
    held.encode([clip])
    held.leaves([clip])
    assert held.encoded == 6


def test_a_step_uses_its_graphs_up(checkpoint, cache):
    """The next step's are those of the next weights."""
    name, held = "qwen2_5_vl", cache()
    checkpoint.model.double()
    media = looks(name)
    with held.tracked():
        held.encode(media)
    step_on(held.leaves(media[:2]))
    gradients(checkpoint)
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter.mul_(1.01)
    held.clear()
    step_on(held.leaves(media[2:]))
    ours = gradients(checkpoint)
    assert_equal(ours, plain(checkpoint, media[2:])[0])


def test_nothing_is_left_of_towers_that_changed(checkpoint, cache):
    medium, held = picture("qwen2_5_vl", 0), cache()
    with held.tracked():
        first = held.encode([medium])[medium.key]
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter.mul_(1.5)
    held.clear()
    assert held.num_bytes == 0
    assert not torch.equal(held.encode([medium])[medium.key], first)
    assert held.encoded == 2


@pytest.fixture
def disk(tmp_path):
    """disk(checkpoint) opens the folder for the checkpoint's towers."""
    told = []

    def make(checkpoint, limit_bytes=1 << 24):
        version = tower_version(checkpoint.model, checkpoint.family)
        return DiskTier(tmp_path / "features", limit_bytes, version, tell=told.append)

    yield make
    assert told == []


@pytest.mark.parametrize("name", families.WRITERS)
def test_a_second_run_encodes_nothing(fresh, disk, name):
    first, second, media = fresh(name), fresh(name), mixture(name)
    cache = FeatureCache(first.model, first.family, disk=disk(first))
    ours = cache.encode(media)
    assert cache.encoded == sum(len(first.family.parts(medium)) for medium in media)
    cache = FeatureCache(second.model, second.family, disk=disk(second))
    theirs = cache.encode(media)
    assert cache.encoded == 0
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_other_weights_are_encoded_anew(fresh, disk):
    checkpoint, medium = fresh("qwen2_5_vl"), picture("qwen2_5_vl", 0)
    FeatureCache(checkpoint.model, checkpoint.family, disk=disk(checkpoint)).encode([medium])
    with torch.no_grad():
        next(checkpoint.family.towers(checkpoint.model)[0].parameters()).mul_(1.5)
    cache = FeatureCache(checkpoint.model, checkpoint.family, disk=disk(checkpoint))
    found = cache.encode([medium])[medium.key]
    assert cache.encoded == 1
    assert torch.equal(found, FeatureCache(checkpoint.model, checkpoint.family).encode([medium])[medium.key])


def test_a_denser_look_in_another_run_reads_the_steps_that_it_shares(checkpoint, cache, disk):
    cache(disk=disk(checkpoint)).encode([video("qwen2_5_vl", [0, 2])])
    held = cache(disk=disk(checkpoint))
    held.encode([video("qwen2_5_vl", range(4))])
    assert held.encoded == 2


def test_what_memory_let_go_is_read_from_disk(checkpoint, cache, disk):
    media = [picture("qwen2_5_vl", seed) for seed in range(3)]
    held = cache(disk=disk(checkpoint), memory_bytes=PICTURE_BYTES)
    whole = [held.encode([medium])[medium.key] for medium in media]
    again = [held.encode([medium])[medium.key] for medium in media]
    assert held.encoded == 3
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_a_damaged_file_costs_an_encoding(checkpoint, cache, disk, tmp_path):
    medium = picture("qwen2_5_vl", 0)
    whole = cache(disk=disk(checkpoint)).encode([medium])[medium.key]
    (path,) = tmp_path.glob("features/*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    held = cache(disk=disk(checkpoint))
    assert torch.equal(held.encode([medium])[medium.key], whole)
    assert held.encoded == 1


def test_the_disk_neither_gives_nor_takes_live_features(checkpoint, cache, disk, tmp_path):
    a, b = picture("qwen2_5_vl", 0), picture("qwen2_5_vl", 1)
    cache(disk=disk(checkpoint)).encode([a])
    held = cache(disk=disk(checkpoint))
    with held.tracked():
        held.encode([a, b])
    assert held.encoded == 2
    held = cache(disk=disk(checkpoint))
    held.leaves([a, b])
    assert held.encoded == 2
    assert len(list(tmp_path.glob("features/*.safetensors"))) == 1


def test_the_disk_is_let_go_when_the_towers_change(checkpoint, cache, disk, tmp_path):
    a, b = picture("qwen2_5_vl", 0), picture("qwen2_5_vl", 1)
    held = cache(disk=disk(checkpoint))
    before = held.encode([a])[a.key]
    with torch.no_grad():
        next(checkpoint.family.towers(checkpoint.model)[0].parameters()).mul_(1.5)
    held.clear()
    after = held.encode([a, b])[a.key]
    assert held.encoded == 3
    assert not torch.equal(before, after)
    assert len(list(tmp_path.glob("features/*.safetensors"))) == 1
