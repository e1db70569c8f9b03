"""The disk tier: what is read is what was written, whatever else happens to the folder."""

import json
import multiprocessing
import os
import resource
import time

import pytest
import torch
from safetensors.torch import load, save

from mmrl.cache.disk import MANIFEST, SCAN_SHARE, STALE_S, DiskTier, tower_version

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen2_audio", "qwen2_5_omni"]


@pytest.fixture
def told():
    return []


@pytest.fixture
def tier(tmp_path, told):
    """tier(...) opens the same folder each time."""

    def make(limit_bytes=1 << 20, version="v", folder=tmp_path / "features"):
        return DiskTier(folder, limit_bytes, version, tell=told.append)

    return make


def features(seed, tokens=3, width=8, dtype=torch.float32):
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def files(tier):
    return sorted(tier.folder.glob("*.safetensors"))


def only_file(tier):
    (path,) = files(tier)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_another_process_reads_what_was_written(tier, told, dtype):
    whole = features(0, 9, dtype=dtype)
    tier().put("a", whole[3:6])
    found = tier().get("a")
    assert found.dtype == dtype
    assert torch.equal(found, whole[3:6])
    assert told == []


def test_features_of_another_medium_or_version_are_not_found(tier):
    tier().put("a", features(0))
    assert tier().get("b") is None
    assert tier(version="w").get("a") is None
    assert tier().get("a") is not None


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def other_shape(data):
    held = load(data)
    return save({"features": held["features"].reshape(-1), "check": held["check"]})


def other_dtype(data):
    held = load(data)
    return save({"features": held["features"].view(torch.int32), "check": held["check"]})


DAMAGE = {
    "empty": lambda data: b"",
    "header cut": lambda data: data[:5],
    "cut": lambda data: data[:-7],
    "longer": lambda data: data + b"\0",
    "garbage": lambda data: os.urandom(len(data)),
    "huge header": lambda data: b"\xff" * 8 + data[8:],
    "first bit of the numbers": lambda data: flip(data, len(data) - 96 - 32),
    "last bit": lambda data: flip(data, len(data) - 1),
    "zeros": lambda data: data[:-64] + b"\0" * 64,
    "other shape": other_shape,
    "other dtype": other_dtype,
    "no check": lambda data: save({"features": load(data)["features"]}),
    "other names": lambda data: save({"weight": torch.zeros(2)}),
    "no numbers": lambda data: save({"features": torch.zeros(0, 8), "check": torch.zeros(0)}),
    "text": lambda data: b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_not_read_and_is_mended_by_the_next_encoding(tier, told, damage):
    tier().put("a", features(0))
    path = only_file(tier())
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[damage](whole))
    assert path.read_bytes() != whole
    assert tier().get("a") is None
    tier().put("a", features(0))
    assert torch.equal(tier().get("a"), features(0))
    assert told == []


def test_a_file_under_the_name_of_another_is_not_read(tier):
    disk = tier()
    disk.put("a", features(0))
    first = only_file(disk)
    disk.put("b", features(1))
    (second,) = set(files(disk)) - {first}
    second.write_bytes(first.read_bytes())
    assert disk.get("b") is None
    assert disk.get("a") is not None


def test_a_file_that_is_removed_meanwhile_is_not_found(tier, told):
    disk = tier()
    disk.put("a", features(0))
    only_file(disk).unlink()
    assert disk.get("a") is None
    disk.put("a", features(0))
    assert disk.get("a") is not None
    assert told == []


def test_what_cannot_be_written_is_told_once_and_leaves_nothing(tier, told):
    disk = tier()
    disk.put("a", features(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))  # as on a full disk: a write ends half way
    try:
        disk.put("b", features(1, 100))
        disk.put("c", features(2, 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(told) == 1
    assert str(disk.folder) in told[0]
    assert "no longer written" in told[0]
    assert sorted(os.listdir(disk.folder)) == sorted([MANIFEST, only_file(disk).name])
    assert disk.get("b") is None
    assert torch.equal(disk.get("a"), features(0))  # what is there is still read


def test_a_folder_that_vanishes_costs_encodings(tier, told):
    disk = tier()
    disk.put("a", features(0))
    for path in disk.folder.iterdir():
        path.unlink()
    disk.folder.rmdir()
    assert disk.get("a") is None
    disk.put("a", features(0))
    disk.put("b", features(1))
    assert disk.get("a") is None
    assert len(told) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_may_only_be_read_is_read(tier, told):
    tier().put("a", features(0))
    folder = tier().folder
    folder.chmod(0o500)
    try:
        disk = tier()
        assert torch.equal(disk.get("a"), features(0))
        disk.put("b", features(1))
        disk.put("c", features(2))
    finally:
        folder.chmod(0o700)
    assert len(told) == 1


MANIFESTS = {
    "none": None,
    "cut": b'{"format": "mmrl fea',
    "no text": b"\xff\xfe\x00",
    "a list": b"[1]",
    "nested": b"[" * 100_000,
    "another program's": b'{"format": "images", "format_version": 1}',
    "a later format": b'{"format": "mmrl features", "format_version": 2}',
    "no version": b'{"format": "mmrl features"}',
}


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_folder_that_is_no_cache_is_left_alone(tmp_path, tier, told, manifest):
    folder = tmp_path / "mine"
    folder.mkdir()
    name = "0" * 64 + ".safetensors"
    (folder / name).write_bytes(b"mine")
    if MANIFESTS[manifest] is not None:
        (folder / MANIFEST).write_bytes(MANIFESTS[manifest])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    disk = tier(limit_bytes=1000, folder=folder)
    for number in range(20):
        disk.put(str(number), features(number))
        assert disk.get(str(number)) is None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert len(told) == 1
    assert str(folder) in told[0]


def test_a_file_where_the_folder_should_be_is_told(tmp_path, tier, told):
    (tmp_path / "file").write_bytes(b"x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        disk = tier(folder=folder)
        disk.put("a", features(0))
        assert disk.get("a") is None
    assert len(told) == 2
    assert (tmp_path / "file").read_bytes() == b"x"


def test_the_manifest_says_what_made_the_folder(tier):
    manifest = json.loads((tier().folder / MANIFEST).read_text())
    assert (manifest["format"], manifest["format_version"]) == ("mmrl features", 1)
    assert manifest["made_by"].startswith("mmrl ")


def test_the_least_recently_used_go_first(tier):
    disk = tier(limit_bytes=4 * 1300)
    for number in range(3):
        disk.put(str(number), features(number, 30))  # 1200 bytes with the header
        for path in files(disk):
            os.utime(path, ns=(0, os.stat(path).st_mtime_ns - 10**9))
    assert disk.get("0") is not None  # from now on the latest
    disk.put("3", features(3, 30))
    disk.put("4", features(4, 30))
    assert [disk.get(str(number)) is not None for number in range(5)] == [True, False, True, True, True]


def test_the_limit_holds_over_processes_and_versions_and_spares_what_is_not_ours(tier):
    one, other = tier(limit_bytes=20_000), tier(limit_bytes=20_000, version="w")
    note = one.folder / "notes.txt"
    note.write_text("x" * 50_000)
    for number in range(50):
        one.put(str(number), features(number, 30))
        other.put(str(number), features(number, 30))
        held = sum(path.stat().st_size for path in files(one))
        assert held <= 20_000 * (1 + 2 * SCAN_SHARE) + 2 * 1500
    assert held > 15_000
    assert note.read_text() == "x" * 50_000


def test_what_is_larger_than_the_limit_is_not_written(tier, told):
    disk = tier(limit_bytes=100)
    disk.put("a", features(0))
    disk.put("b", features(0, tokens=4))
    assert [disk.get(key) is not None for key in "ab"] == [False, False]
    assert files(disk) == []
    assert told == []


def test_what_a_killed_process_left_is_removed_in_time_and_never_read(tier, told):
    disk = tier()
    old, new = (disk.folder / f".{digit * 32}.tmp" for digit in "01")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, time.time() - STALE_S - 60))
    tier().put("a", features(0))
    assert not old.exists()
    assert new.exists()
    assert told == []


def test_a_process_killed_before_its_manifest_was_whole_leaves_a_usable_folder(tmp_path, tier, told):
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / f".{'a' * 32}.tmp").write_bytes(b'{"form')
    tier().put("a", features(0))
    assert torch.equal(tier().get("a"), features(0))
    assert told == []


def work(folder, number, rounds):
    """Puts and gets of keys that other processes use too: returns what went wrong, and how many were found."""
    told, wrong, found = [], [], 0
    disk = DiskTier(folder, 12_000, "v", tell=told.append)
    rng = torch.Generator().manual_seed(number)
    for _ in range(rounds):
        key = int(torch.randint(20, (), generator=rng))
        held = disk.get(str(key))
        if held is None:
            disk.put(str(key), features(key, 30))
        else:
            found += 1
            if not torch.equal(held, features(key, 30)):
                wrong.append(key)
    return told, wrong, found


def test_processes_share_a_folder(tmp_path):
    folder = tmp_path / "new" / "features"
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        results = pool.starmap(work, [(folder, number, 150) for number in range(3)])
    for told, wrong, found in results:
        assert told == []
        assert wrong == []
        assert found > 0
    names = os.listdir(folder)
    assert not [name for name in names if name.endswith(".tmp")]
    sizes = [os.stat(folder / name).st_size for name in names if name != MANIFEST]
    assert sum(sizes) <= 12_000 * (1 + 3 * SCAN_SHARE) + 3 * 1500


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """fresh(name) loads the family's checkpoint anew each time."""
    import families  # not above: the processes of this file have no need of transformers

    from mmrl.models.load import load_checkpoint

    root = tmp_path_factory.mktemp("families")

    def load_anew(name, dtype="float32"):
        path = root / name
        if not path.exists():
            families.write(name, path)
        return load_checkpoint(path, family=None, dtype=dtype, device="cpu")

    return load_anew


@pytest.mark.parametrize("name", FAMILIES)
def test_a_version_is_that_of_equal_towers_and_no_others(fresh, name):
    first, second = fresh(name), fresh(name)
    version = tower_version(first.model, first.family)
    assert tower_version(second.model, second.family) == version
    halved = fresh(name, "bfloat16")
    assert tower_version(halved.model, halved.family) != version
    tower = second.family.towers(second.model)[-1]
    parameter = list(tower.parameters())[-1]
    with torch.no_grad():
        value = parameter.view(-1)[0].clone()
        parameter.view(-1)[0] = torch.nextafter(value, value + 1)
        assert tower_version(second.model, second.family) != version
        parameter.view(-1)[0] = value
        assert tower_version(second.model, second.family) == version
        second.model.get_input_embeddings().weight.add_(1)  # no part of a tower
        assert tower_version(second.model, second.family) == version


def test_a_version_depends_on_buffers_and_on_how_media_are_shown(fresh):
    from dataclasses import replace

    checkpoint = fresh("qwen2_5_vl")
    family, model = checkpoint.family, checkpoint.model
    versions = [tower_version(model, family)]
    family.patching = replace(family.patching, mean=(0.5, 0.5, 0.5))
    versions.append(tower_version(model, family))
    (tower,) = family.towers(model)
    tower.rotary_pos_emb.inv_freq.mul_(2)
    versions.append(tower_version(model, family))
    tower.config.window_size *= 2
    versions.append(tower_version(model, family))
    assert len(set(versions)) == 4


@pytest.mark.parametrize("name", ["qwen2_audio", "qwen2_5_omni"])
def test_a_version_depends_on_how_sound_is_cut(fresh, name):
    checkpoint = fresh(name)
    version = tower_version(checkpoint.model, checkpoint.family)
    checkpoint.family.extractor.dither = 0.1
    assert tower_version(checkpoint.model, checkpoint.family) != version
