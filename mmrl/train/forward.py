"""The forward of a batch of rows: plain and padded, or packed so that what rows share is computed once.

The plain forward is the reference that the packed one is compared with.
Shapes: B rows, T tokens, D hidden, N targets, flat in the order of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from mmrl.attention.tree import Tree
from mmrl.models.embed import Embedded, Placed, fill
from mmrl.protocols import ModelFamily
from mmrl.train.packing import pack
from mmrl.types import MediaSpan, Row

Features = Mapping[str, torch.Tensor]


def padded_states(
    model: Any, family: ModelFamily, rows: Sequence[Row], features: Features
) -> tuple[torch.Tensor, torch.Tensor]:
    """((N, D) states that predict the targets, (N,) targets); each row computed by itself, padded on the right."""
    ids = pad_sequence([torch.from_numpy(row.ids_T) for row in rows], batch_first=True)
    positions = pad_sequence([torch.from_numpy(row.positions_3T.T) for row in rows], batch_first=True)
    places = [place for number, row in enumerate(rows) for place in placed(number, row.spans, features)]
    inputs = embed(model, ids, positions.permute(2, 0, 1), places)
    # Padding stands on the right, where no real token looks: plain causal attention needs no mask.
    hidden = family.hidden_states(model, inputs, None)
    row_N = np.repeat(np.arange(len(rows)), [len(row.target_N) for row in rows])
    source_N = np.concatenate([row.source_N for row in rows])
    target_N = np.concatenate([row.target_N for row in rows])
    return hidden[_on(model, row_N), _on(model, source_N)], _on(model, target_N)


def packed_states(
    model: Any, family: ModelFamily, rows: Sequence[Row], features: Features
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, of one sequence in which shared beginnings stand once."""
    packed = pack(rows)
    ids, positions = torch.from_numpy(packed.ids_T)[None], torch.from_numpy(packed.positions_3T)[:, None]
    inputs = embed(model, ids, positions, list(placed(0, packed.spans, features)))
    hidden = family.hidden_states(model, inputs, None, tree=Tree.of(packed.nodes, model.device))
    return hidden[0, _on(model, packed.source_N)], _on(model, packed.target_N)


def embed(model: Any, ids_BT: torch.Tensor, positions_3BT: torch.Tensor, places: Sequence[Placed]) -> Embedded:
    embeds = model.get_input_embeddings()(ids_BT.to(model.device))
    return fill(embeds, positions_3BT.to(model.device), places)


def placed(row: int, spans: Sequence[MediaSpan], features: Features) -> Iterator[Placed]:
    """The features of every media span of a row of the batch."""
    for span in spans:
        part = features[span.key][span.offset : span.offset + span.length]
        yield Placed(row=row, start=span.start, features=part)


def _on(model: Any, values_N: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values_N).to(model.device)
