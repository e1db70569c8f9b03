"""The report is made from a run's files; what a model wrote can do nothing on the page."""

import json

import pytest

from mmrl.report import exhibits
from mmrl.report.curves import MAX_POINTS, curves
from mmrl.report.store import RunStore
from mmrl.types import Gold, Region

EVIL = "</pre></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}"
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
)


@pytest.fixture
def zoomed(make_image, make_group):
    """A zoom into the quarter at (200, 0) of a 400 x 400 image; the gold box lies inside."""
    crop = make_image("crop", (200.0, 0.0), (2.0, 2.0), "root")
    gold = Gold(answer="7", boxes=((220.0, 20.0, 260.0, 60.0),), points=((300.0, 100.0), (20.0, 380.0)))
    return make_group([make_image("root")], ((Region(on="root", box=(200.0, 0.0, 400.0, 200.0)),), [crop]), gold=gold)


def test_every_image_of_a_turn_is_shown_and_carried_by_the_page_once(log, page, zoomed):
    log(zoomed, zoomed)
    shown = page()
    assert [style for _, style, _ in shown.pictures] == ["width:240px;height:240px"] * 4
    assert len(shown.carried) == 2
    assert {kind.split()[0] for kind, *_ in shown.pictures} == set(shown.carried)
    assert all(url.startswith("data:image/png;base64,iVBOR") for url in shown.carried.values())


def test_the_asked_box_is_drawn_on_its_parent_and_gold_wherever_it_is_seen(log, page, zoomed):
    log(zoomed)
    assert page().marks == [
        ("gold", "left:55.00%;top:5.00%;width:10.00%;height:10.00%"),
        ("gold point", "left:75.00%;top:25.00%"),
        ("gold point", "left:5.00%;top:95.00%"),
        ("asked", "left:50.00%;top:0.00%;width:50.00%;height:50.00%"),
        ("gold", "left:10.00%;top:10.00%;width:20.00%;height:20.00%"),
        ("gold point", "left:50.00%;top:50.00%"),
    ]


def test_a_video_is_a_line_of_time_with_what_was_asked_shown_and_gold(log, page, make_video, make_image, make_group):
    video = make_video("v", [0, 15, 30, 45], (0.0, 60.0))
    crop = make_video("c", [30, 35, 40, 45], (30.0, 45.0), parent="v")
    still = make_image("f", parent="c", times=(36.0,))
    looks = [
        ((Region(on="v", span=(28.0, 45.0)),), [crop]),
        ((Region(on="c", times=(36.0,)),), [still]),
        ((Region(on="v", times=(31.0,), box=(200.0, 100.0, 400.0, 200.0)),), []),
    ]
    log(make_group([video], *looks, gold=Gold(spans=((35.0, 50.0),))))
    shown = page()
    assert shown.bands == [
        ("gold", "left:58.33%;width:25.00%", "gold: 0:35.0 to 0:50.0"),
        ("asked", "left:46.67%;width:28.33%;top:0px", "turn 1 asked: 0:28.0 to 0:45.0"),
        ("shown", "left:50.00%;width:25.00%;top:11px", "turn 1 got: 0:30.0 to 0:45.0"),
        ("shown moment", "left:60.00%;top:22px", "turn 2 got: 0:36.0"),
        ("asked moment", "left:51.67%;top:22px", "turn 3 asked: 0:31.0"),
        ("gold", "left:33.33%;width:66.67%", "gold: 0:35.0 to 0:50.0"),
        ("asked moment", "left:40.00%;top:0px", "turn 2 asked: 0:36.0"),
        ("shown moment", "left:40.00%;top:11px", "turn 2 got: 0:36.0"),
    ]
    assert shown.paths == ["M0,0V1M250,0V1M500,0V1M750,0V1", "M0,0V1M333,0V1M667,0V1M1000,0V1"]
    assert [title for *_, title in shown.pictures] == [
        *(f"frame at {time}" for time in ("0:00", "0:15", "0:30", "0:45")),
        *(f"frame at {time}" for time in ("0:30", "0:35", "0:40", "0:45")),
        "f at 0:36.0, shown at 100 x 100 (original 400 x 400)",
    ]
    assert "clip.mp4, 0:00.0 to 1:00.0, 4 frames shown at 100 x 50 (original 400 x 200)" in shown.text


def test_a_box_on_a_video_is_drawn_on_the_frame_that_it_was_read_from(log, page, make_video, make_group):
    asked = Region(on="v", times=(31.0,), box=(200.0, 100.0, 400.0, 200.0))
    log(make_group([make_video("v", [0, 15, 30, 45], (0.0, 60.0))], ((asked,), [])))
    shown = page()
    assert shown.marks == [("asked", "left:50.00%;top:50.00%;width:50.00%;height:50.00%")]
    before = shown.text[: shown.text.index('<div class="mark asked"')]
    assert before.rindex('title="frame at 0:30"') > before.rindex('title="frame at 0:15"')


def test_a_sound_is_an_outline_with_bands_and_a_player(log, page, make_audio, make_group):
    sound, clip = make_audio("a", 8, (0.0, 8.0)), make_audio("b", 2, (2.0, 4.0), parent="a")
    looks = [((Region(on="a", span=(2.0, 4.0)),), [clip])]
    log(make_group([sound], *looks, gold=Gold(spans=((1.0, 3.0),))))
    shown = page()
    assert shown.bands == [
        ("gold", "left:12.50%;width:25.00%", "gold: 0:01.0 to 0:03.0"),
        ("asked", "left:25.00%;width:25.00%;top:0px", "turn 1 asked: 0:02.0 to 0:04.0"),
        ("shown", "left:25.00%;width:25.00%;top:11px", "turn 1 got: 0:02.0 to 0:04.0"),
        ("gold", "left:0.00%;width:50.00%", "gold: 0:01.0 to 0:03.0"),
    ]
    assert shown.hours[:9] == [f"left:{12.5 * n:.2f}%" for n in range(9)]
    assert [path.count(",") for path in shown.paths] == [800, 800]
    assert len(shown.sounds) == 2
    assert all(url.startswith("data:audio/flac;base64,ZkxhQ") for url in shown.sounds)


def test_a_video_that_is_heard_is_shown_with_its_sound_and_gold_on_both(log, page, make_video, make_audio, make_group):
    video = make_video("v", [0, 4], (0.0, 8.0))
    sound = make_audio("a", 8, (0.0, 8.0), path="clip.mp4")
    log(make_group([video, sound], gold=Gold(spans=((2.0, 4.0),))))
    shown = page()
    assert [(kind, style) for kind, style, _ in shown.bands] == [("gold", "left:25.00%;width:25.00%")] * 2
    assert (len(shown.pictures), len(shown.sounds)) == (2, 1)


def test_gold_is_not_drawn_on_another_file(log, page, make_video, make_audio, make_group):
    log(make_group([make_video("v", [0, 4], (0.0, 8.0)), make_audio("a", 8)], gold=Gold(spans=((2.0, 4.0),))))
    assert len(page().bands) == 1


def test_siblings_share_sounds_and_fold_frames_that_were_shown(log, page, make_video, make_audio, make_group):
    log(make_group([make_video("v", [0, 4], (0.0, 8.0)), make_audio("a", 8)], siblings=3))
    shown = page()
    assert len(shown.carried) == 2
    assert (len(shown.pictures), len(shown.sounds)) == (6, 1)
    assert shown.text.count("the same frames as above") == 2
    assert shown.text.count("can be played further up") == 2


def test_the_sounds_of_a_page_are_bounded(log, page, make_audio, make_group, monkeypatch):
    log(make_group([make_audio("a", 2), make_audio("b", 2)]))
    one = len(page().sounds[0])
    monkeypatch.setattr(exhibits, "MAX_SOUND_BYTES", one + 10)
    shown = page()
    assert len(shown.sounds) == 1
    assert "the page would grow too large" in shown.text


def test_rungs_stand_in_order_with_their_votes_and_cost(log, page, make_image, make_group):
    group = make_group([make_image("a")], siblings=2, sample="climber")
    first = {
        "number": 0,
        "title": "8 frames",
        "accepted": False,
        "votes": {"7": 1, "2": 1},
        "frames": 16,
        "tokens": 4321,
    }
    log(group, rung={"number": 1, "title": "16 frames", "accepted": True, "votes": {"7": 2}})
    log(make_group([make_image("a")], sample="other"))
    log(group, rung=first)
    shown = page()
    assert shown.tags.count("section") == 2
    titles = [name for name in shown.headings if name.strip() and "reward" not in name]
    assert titles == [
        *("Training, latest steps", "climber, rung 0", "climber", "climber", "climber, rung 1", "climber", "climber"),
        "other",
    ]
    low, high = shown.text.split("<section")[1:]
    assert "8 frames" in low
    assert [word in low for word in ("7: 1 vote<", "2: 1 vote<", "4,321 tokens", "climbed", "accepted")] == [
        True
    ] * 4 + [False]
    assert "7: 2 votes" in high
    assert ">accepted<" in high


def test_a_ladder_that_ends_undecided_says_so(log, page, make_image, make_group):
    log(make_group([make_image("a")]), rung={"number": 0, "accepted": False})
    assert ">not accepted<" in page().text


def test_rungs_of_a_sample_are_not_parted_by_the_limit(page, tmp_path, make_image, make_group):
    groups = [make_group([make_image("a")], sample=sample, siblings=2) for sample in ("a", "a", "b", "b", "c")]
    rungs = [{"number": number, "accepted": bool(number)} for number in (0, 1, 0, 1, 1)]
    store = RunStore(tmp_path)
    store.write_groups("after", groups, lambda ids: "", rungs)
    for group, rung in zip(groups, rungs, strict=True):
        store.log_group("play", 0, "rollout", group, lambda ids: "", rung)
    store.close()
    shown = page(limit=5)
    first, latest = ([name for name in part.split("<b>") if ", rung" in name] for part in shown.text.split("<h2>")[-2:])
    assert [name.split("<")[0] for name in first] == ["a, rung 0", "a, rung 1", "b, rung 0", "b, rung 1"]
    assert [name.split("<")[0] for name in latest] == ["b, rung 0", "b, rung 1", "c, rung 1"]


def test_test_time_strategies_are_a_second_table(log, page, tmp_path, zoomed):
    log(zoomed)
    strategies = {"ladder": {"accuracy": 0.735, "frames": 21.34, "tokens": 3377.2}, EVIL: {"accuracy": 0.5}}
    (tmp_path / "summary.json").write_text(json.dumps({"rows": 8, "tools": {"exact": 0.5}, "test_time": strategies}))
    shown = page()
    assert shown.tags.count("table") == 2
    assert "<td>73.5 %</td><td>21.3</td><td>3,377</td>" in shown.text
    assert "script" not in shown.tags


def test_what_a_model_or_a_row_wrote_is_text(log, page, tmp_path, make_video, make_image, make_audio, make_group):
    video = make_video("v", [0, 4], (0.0, 8.0), label=EVIL)
    looks = [((Region(on="v", times=(4.0,)),), [make_image("f", parent="v", times=(4.0,), label=EVIL)])]
    group = make_group(
        [video, make_audio("a", 1, label=EVIL, path=EVIL)], *looks, gold=Gold(answer=EVIL), sample=EVIL, text=EVIL
    )
    log(group, text=EVIL, rung={"number": 0, "title": EVIL, "votes": {EVIL: 2}, "frames": EVIL})
    store = RunStore(tmp_path)
    store.log_metrics(EVIL, 1, {"reward": 0.5, EVIL: 1.0, "loss": float("nan")})
    store.close()
    (tmp_path / "config.yaml").write_text(EVIL)
    shown = page()
    assert {"script", "img", "link", "iframe"}.isdisjoint(shown.tags)
    assert "onerror" not in shown.attributes
    assert "{{ 7 * 7 }}" in shown.text
    assert shown.tags.count("style") == 1


def test_the_page_loads_nothing(log, page, make_video, make_audio, make_group):
    log(make_group([make_video("v", [0, 4], (0.0, 8.0)), make_audio("a", 1)]))
    shown = page()
    assert f'content="{POLICY}"' in shown.text
    assert "href" not in shown.attributes
    assert shown.text.count("url(") == shown.text.count("url(data:image/jpeg;base64,") == 2
    assert shown.text.count("src=") == shown.text.count('src="data:audio/flac;base64,') == 1


def test_missing_files_leave_a_gap_in_the_page(log, page, tmp_path, make_video, make_image, make_audio, make_group):
    log(make_group([make_image("i"), make_video("v", [0, 4], (0.0, 8.0)), make_audio("a", 1)]))
    for path in (tmp_path / "media").iterdir():
        path.unlink()
    shown = page()
    assert [kind.split()[0] for kind, *_ in shown.pictures] == ["missing"] * 3
    assert (shown.carried, shown.sounds) == ({}, [])
    assert "its file is missing" in shown.text


def test_only_files_of_the_media_folder_are_carried(log, page, tmp_path, zoomed):
    log(zoomed)
    (tmp_path / "secret.png").write_bytes(b"secret")
    stream = tmp_path / "rollouts" / "stream.jsonl"
    stream.write_text(stream.read_text().replace("media/root.png", "media/../secret.png"))
    shown = page()
    assert "c2VjcmV0" not in shown.text
    assert len(shown.carried) == 1


def test_a_torn_last_line_is_left_out(log, page, tmp_path, zoomed):
    log(zoomed)
    stream = tmp_path / "rollouts" / "stream.jsonl"
    stream.write_text(stream.read_text() + stream.read_text()[:500])
    assert page().tags.count("article") == 1


def test_lines_of_earlier_versions_are_shown(log, page, tmp_path, zoomed):
    log(zoomed)
    new = page()
    stream = tmp_path / "rollouts" / "stream.jsonl"
    line = json.loads(stream.read_text())
    line["gold"] = {"answer": "7", "boxes": line["gold"]["boxes"]}
    for medium in line["media"].values():
        for name in ("kind", "times", "span", "source"):
            del medium[name]
    for turn in line["turns"]:
        turn["regions"] = [{"on": region["on"], "box": region["box"]} for region in turn["regions"]]
    stream.write_text(json.dumps(line) + "\n")
    old = page()
    assert old.pictures == new.pictures
    assert old.marks == [mark for mark in new.marks if "point" not in mark[0]]


def test_a_video_of_an_hour_stays_small(log, page, tmp_path, make_video, make_group):
    frame_by_frame = "".join(f"<{t:.1f} seconds><|vision_start|><|vision_end|>" for t in range(3600))
    video = make_video("v", [t % 251 for t in range(3600)], (0.0, 3600.0))
    object.__setattr__(video, "times", tuple(map(float, range(3600))))
    log(make_group([video], siblings=2), text=frame_by_frame)
    shown = page()
    assert "64 of 3,600 frames" in shown.text
    assert len(shown.carried) <= 64
    assert "3600 frames …" in shown.text
    assert len(shown.text) < 300_000
    assert sum(path.stat().st_size for path in (tmp_path / "media").iterdir()) < 100_000


def test_at_most_the_wanted_number_of_trajectories_is_shown_the_latest_of_training(log, page, zoomed):
    log(*[zoomed] * 30)
    shown = page(limit=20)
    assert shown.tags.count("article") == 20
    assert "step 30" in shown.text


def test_files_of_rollouts_by_any_name_are_shown(page, tmp_path, zoomed):
    store = RunStore(tmp_path)
    for name in ("mine", "after"):
        store.write_groups(name, [zoomed], lambda ids: "text", {"number": 0, "title": "one look"})
    store.close()
    shown = page()
    assert [name for name in shown.headings if name in ("mine", "Held-out rows, after training")] == [
        "Held-out rows, after training",
        "mine",
    ]
    assert shown.text.count("one look") == 2


def test_curves_skip_what_is_not_a_number_and_thin_long_runs():
    lines = [{"stage": "s", "step": n, "time": 0, "reward": float(n), "loss": None} for n in range(5000)]
    (curve,) = curves(lines)
    assert (curve.name, curve.low > 0, curve.last) == ("reward", True, pytest.approx(4993, abs=7))
    assert curve.path.count(",") <= MAX_POINTS
    assert curve.headline
