"""A demo's files are of one set of settings, whatever interrupted their making."""

from dataclasses import dataclass

import pytest

from mmrl.demo.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines(Task):
    train: int = 3
    fails: bool = False

    def write_rows(self, root):
        root.mkdir(parents=True, exist_ok=True)
        (root / "train.jsonl").write_text("row\n" * self.train)
        if self.fails:
            raise KeyboardInterrupt

    def write_model(self, path, seed):
        path.mkdir()
        (path / "config.json").write_text(str(seed))


def test_what_is_there_is_kept_and_other_settings_make_it_anew(tmp_path):
    rows = tmp_path / "train.jsonl"
    Lines(dir=str(tmp_path)).prepare(0)
    rows.write_text("mine\n")
    Lines(dir=str(tmp_path)).prepare(1)
    assert rows.read_text() == "mine\n"
    assert (tmp_path / "model-1" / "config.json").read_text() == "1"
    Lines(dir=str(tmp_path), train=2).prepare(0)
    assert rows.read_text() == "row\n" * 2


def test_files_of_an_interrupted_making_are_not_taken_for_the_earlier_ones(tmp_path):
    Lines(dir=str(tmp_path)).prepare(0)
    with pytest.raises(KeyboardInterrupt):
        Lines(dir=str(tmp_path), train=9, fails=True).prepare(0)
    Lines(dir=str(tmp_path)).prepare(0)
    assert (tmp_path / "train.jsonl").read_text() == "row\n" * 3
