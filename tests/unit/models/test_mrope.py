import numpy as np
import torch

from mmrl.models.mrope import mrope_positions
from mmrl.types import MediaSpan


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
        ids += [family.image_id] * spans[-1].length + [8, 9]
    sizes = torch.tensor([(t, h * family.merge_size, w * family.merge_size) for t, h, w in grids])
    ids_1T = torch.tensor([ids])
    kinds_1T = (ids_1T == family.image_id).int()
    theirs, _ = model.model.get_rope_index(ids_1T, mm_token_type_ids=kinds_1T, image_grid_thw=sizes)
    assert (mrope_positions(len(ids), spans) == theirs[:, 0].numpy()).all()
