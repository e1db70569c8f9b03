from dataclasses import replace

import numpy as np
import pytest
import torch

from mmrl.models.mrope import mrope_positions
from mmrl.models.text import Slot, control_id
from mmrl.types import CoordinateFrame, Media, MediaSpan, Part


def span(start, grid):
    return MediaSpan(key="m", start=start, length=int(np.prod(grid)), grid=grid)


def test_text_counts_up_in_all_three_rows():
    assert (mrope_positions(4, []) == np.arange(4)).all()


def test_an_image_spans_its_grid_and_text_goes_on_after_its_highest_position():
    # two text tokens, an image of 2 x 3 merged tokens, two text tokens
    positions = mrope_positions(10, [span(2, (1, 2, 3))])
    assert positions[0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]
    assert positions[1].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert positions[2].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]


def test_positions_of_images_and_text_equal_those_of_transformers(checkpoint):
    family, model = checkpoint.family, checkpoint.model
    grids = [(1, 2, 4), (1, 3, 1)]
    ids, spans = [5, 6, 7], []
    for grid in grids:
        spans.append(span(len(ids), grid))
        ids += [control_id(family.tokenizer, "<|image_pad|>")] * spans[-1].length + [8, 9]
    sizes = torch.tensor([(t, h * family.patching.merge, w * family.patching.merge) for t, h, w in grids])
    ids_1T = torch.tensor([ids])
    kinds_1T = (ids_1T == control_id(family.tokenizer, "<|image_pad|>")).int()
    theirs, _ = model.model.get_rope_index(ids_1T, mm_token_type_ids=kinds_1T, image_grid_thw=sizes)
    assert (mrope_positions(len(ids), spans) == theirs[:, 0].numpy()).all()


@pytest.mark.parametrize(
    ("frames", "fps", "last_step"),
    [(16, 2.0, 3 + 7 * 4), (256, 2.0, 3 + 127 * 4), (3600, 1.0, 3 + 1799 * 8)],
)
def test_text_goes_on_after_the_last_moment_of_a_video(checkpoint, frames, fps, last_step):
    """This checkpoint counts four positions a second: steps of two frames, from position 3 on.

    transformers 5.19 and 5.20 go on after the grid's larger side instead: at 5 here, however long the video.
    """
    family = checkpoint.family
    size = (56, 56)
    video = Media(
        kind="video",
        key="v",
        data=np.zeros((frames, 56, 56, 3), np.uint8),
        frame=CoordinateFrame(original=size, seen=size),
        times=tuple(number / fps for number in range(frames)),
    )
    (slot,) = [piece for piece in family.place(Part(media=0), [video]) if isinstance(piece, Slot)]
    span = replace(slot.span, start=3)
    assert span.length == 4 * frames // 2
    positions = mrope_positions(3 + span.length + 2, [span])
    step = round(4 * 2 / fps)
    assert positions[0, span.start : span.start + 9].tolist() == [3] * 4 + [3 + step] * 4 + [3 + 2 * step]
    assert positions[:, 2 + span.length].tolist() == [last_step, 4, 4]
    assert positions[:, -2:].tolist() == [[last_step + 1, last_step + 2]] * 3


def test_a_repeated_last_frame_moves_no_step(checkpoint):
    """Five frames at 2 a second: steps at 0, 1 and 2 s, the last of them one frame twice."""
    video = Media(
        kind="video",
        key="v",
        data=np.zeros((6, 56, 56, 3), np.uint8),
        frame=CoordinateFrame(original=(56, 56), seen=(56, 56)),
        times=(0.0, 0.5, 1.0, 1.5, 2.0, 2.0),
    )
    (slot,) = [piece for piece in checkpoint.family.place(Part(media=0), [video]) if isinstance(piece, Slot)]
    assert mrope_positions(12, [slot.span])[0, ::4].tolist() == [0, 4, 8]
