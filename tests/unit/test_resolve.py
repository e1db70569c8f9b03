"""What a configuration names is found and built, or refused by the half of the name that is wrong."""

import pytest

from mmrl.errors import ConfigError
from mmrl.processors.image import Image
from mmrl.resolve import build, import_object, suggest
from mmrl.rewards.answer import Exact

IMAGE = "mmrl.processors.image:Image"
PLUGIN = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Length:
    most: int
    name: str = "length"

    def __post_init__(self):
        if self.most < 1:
            raise ValueError("most must be at least 1")
"""


@pytest.fixture
def plugin(tmp_path):
    """The path of a file with the dataclass Length."""
    path = tmp_path / "my_reward.py"
    path.write_text(PLUGIN)
    return path


def refusal(function, *arguments):
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    return str(caught.value)


def test_an_object_is_found_by_package_and_name():
    assert import_object("mmrl.rewards.answer:Exact") is Exact


def test_an_object_is_found_in_a_file_which_is_run_once(plugin):
    first, second = import_object(f"{plugin}:Length"), import_object(f"{plugin}:Length")
    assert first is second
    assert build(f"{plugin}:Length", {"most": 3}, "rewards.0").most == 3


def test_two_files_of_one_name_are_two_modules(plugin, tmp_path):
    other = tmp_path / "other" / "my_reward.py"
    other.parent.mkdir()
    other.write_text(PLUGIN.replace('"length"', '"other"'))
    assert build(f"{plugin}:Length", {"most": 3}).name == "length"
    assert build(f"{other}:Length", {"most": 3}).name == "other"


def test_a_file_that_raised_is_run_again_once_it_is_mended(plugin):
    plugin.write_text("raise RuntimeError('not yet')")
    with pytest.raises(RuntimeError, match="not yet"):
        import_object(f"{plugin}:Length")
    plugin.write_text(PLUGIN)
    assert import_object(f"{plugin}:Length").__name__ == "Length"


def test_a_missing_module_is_named():
    assert refusal(import_object, "nomodule.sub:X") == "module 'nomodule.sub' is not installed; check the spelling"
    assert refusal(import_object, "mmrl.answer:X") == "module 'mmrl.answer' is not installed; check the spelling"


def test_a_missing_attribute_is_named_with_the_nearest_one(plugin):
    name = "mmrl.rewards.answer:Exat"
    assert refusal(import_object, name) == f"{name!r}: mmrl.rewards.answer has no 'Exat'; did you mean 'Exact'?"
    assert refusal(import_object, f"{plugin}:Lenght").endswith("has no 'Lenght'; did you mean 'Length'?")


def test_a_missing_file_is_named_with_the_folder_that_was_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(import_object, "mine.py:X") == f"mine.py: no such file (looked in {tmp_path})"


def test_a_name_without_a_colon_is_refused_with_the_form():
    expected = "'mmrl.rewards.answer.Exact': write 'package.module:Name' or 'path/to/file.py:Name'"
    assert refusal(import_object, "mmrl.rewards.answer.Exact") == expected


@pytest.mark.parametrize("name", [":Exact", ".answer:Exact", "mmrl..answer:Exact", "mmrl.rewards.answer:"])
def test_half_a_name_is_refused_and_shown(name):
    assert (name.rpartition(":")[0] or name) in refusal(import_object, name)


def test_a_module_that_a_plugin_misses_is_not_taken_for_the_plugin(tmp_path, monkeypatch):
    (tmp_path / "torchlike_reward.py").write_text("import torchlike")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'torchlike'"):
        import_object("torchlike_reward:X")


def test_fields_are_checked_and_the_defaults_kept():
    assert build(IMAGE, {"min_pixels": 784}, "data.image") == Image(min_pixels=784)


def test_an_unknown_field_names_the_config_key_with_the_nearest_one():
    expected = f"data.image.min_pixel: {IMAGE} has no such field; did you mean 'min_pixels'?"
    assert refusal(build, IMAGE, {"min_pixel": 3}, "data.image") == expected
    assert refusal(build, IMAGE, {"qqq": 3}, "setup.0") == f"setup.0.qqq: {IMAGE} has no such field"


def test_a_field_of_the_wrong_kind_names_the_config_key(plugin):
    text = refusal(build, IMAGE, {"min_pixels": "many"}, "data.image")
    assert text.startswith("data.image.min_pixels: Input should be a valid integer")
    think = refusal(build, "mmrl.rewards.format:Format", {"think": "maybe"}, "rewards.2")
    assert think == "rewards.2.think: Input should be 'required', 'optional' or 'forbidden'"


def test_a_missing_field_names_the_config_key(plugin):
    assert refusal(build, f"{plugin}:Length", {}, "rewards.1") == "rewards.1.most: Field required"


def test_a_refusal_by_the_plugin_itself_names_the_config_key(plugin):
    assert refusal(build, f"{plugin}:Length", {"most": 0}, "rewards.1") == "rewards.1: most must be at least 1"


def test_what_is_no_dataclass_cannot_be_built():
    expected = "rewards.0: mmrl.rewards.answer:number is not a dataclass; what a config names must be one"
    assert refusal(build, "mmrl.rewards.answer:number", {}, "rewards.0") == expected


def test_a_suggestion_is_made_for_a_near_miss_only():
    assert suggest("anwser", ["id", "answer"]) == "; did you mean 'answer'?"
    assert suggest("zzz", ["id", "answer"]) == ""
    assert suggest("a", []) == ""
