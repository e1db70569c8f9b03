"""Packed rows hold every token of every row once, in the right place of the tree."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.attention.tree import Node
from mmrl.models.mrope import mrope_positions
from mmrl.train.packing import arrange, even_batches, pack, plan, shared_batches
from mmrl.types import MediaSpan, Row

PAD = 9


def row(ids, targets, spans=()):
    ids_T, target_N = np.array(ids), np.array(sorted(targets))
    return Row(
        ids_T=ids_T,
        positions_3T=mrope_positions(len(ids), spans),
        spans=tuple(spans),
        source_N=target_N - 1,
        target_N=ids_T[target_N],
    )


def group(prompt, *responses):
    return [row([*prompt, *r], range(len(prompt), len(prompt) + len(r))) for r in responses]


def picture(key, start, t=1, step=1.0):
    return MediaSpan(key=key, start=start, length=4 * t, grid=(t, 2, 2), step=step)


PROMPT = list(range(100, 120))


def test_a_group_is_its_prompt_and_its_responses():
    rows = group(PROMPT, [1, 2, 3], [4, 5], [6])
    packed = pack(rows)
    # The last token of a response predicts nothing: it is not computed. That of one token has nothing left.
    assert packed.ids_T.tolist() == [*PROMPT, 1, 2, 4]
    assert packed.nodes == (Node(0, 20, 23), Node(20, 22, 22), Node(22, 23, 23))
    assert packed.positions_3T[0].tolist() == [*range(20), 20, 21, 20]
    assert packed.source_N.tolist() == [19, 20, 21, 19, 22, 19]
    assert packed.target_N.tolist() == [1, 2, 3, 4, 5, 6]


def test_equal_rows_stand_once_and_keep_their_targets():
    packed = pack(group(PROMPT, [1, 2], [1, 2]))
    assert packed.ids_T.tolist() == [*PROMPT, 1]
    assert packed.source_N.tolist() == [19, 20, 19, 20]


def test_first_turns_that_siblings_share_stand_once():
    turn = list(range(50, 60))
    packed = pack(group(PROMPT, [*turn, 1, 2], [*turn, 3, 4], [5, 6]))
    assert packed.ids_T.tolist() == [*PROMPT, 5, *turn, 1, 3]
    assert packed.nodes == (Node(0, 20, 33), Node(20, 21, 21), Node(21, 31, 33), Node(31, 32, 32), Node(32, 33, 33))


def test_a_few_tokens_in_common_are_not_worth_a_node():
    packed = pack(group(PROMPT, [7, 7, 1, 2], [7, 7, 3, 4], [8, 8]))
    assert packed.ids_T.tolist() == [*PROMPT, 7, 7, 1, 7, 7, 3, 8]


def test_what_follows_the_last_target_is_not_computed():
    assert pack([row([*PROMPT, 1, 2, *range(30, 40)], [20, 21])]).ids_T.tolist() == [*PROMPT, 1]


@pytest.mark.parametrize(
    ("a", "b", "shared"),
    [
        (picture("x", 10), picture("x", 10), 14),
        (picture("x", 10), picture("y", 10), 10),
        (picture("x", 10, t=2, step=1.0), picture("x", 10, t=2, step=4.0), 10),
        (picture("x", 10, t=2), picture("x", 10, t=1), 10),
    ],
)
def test_placeholders_are_equal_only_for_one_medium_in_one_place(a, b, shared):
    rows = [
        row([*PROMPT[:10], *[PAD] * span.length, *r], [25, 26], [span]) for span, r in ((a, [1] * 20), (b, [2] * 20))
    ]
    assert arrange(rows).shared[1] == shared


def test_equal_tokens_at_other_positions_are_not_shared():
    """A family may place what comes first by what comes later."""
    rows = group(PROMPT, [1] * 9, [2] * 9)
    moved = rows[1].positions_3T.copy()
    moved[:, 12:] += 3
    assert arrange([rows[0], replace(rows[1], positions_3T=moved)]).shared == [0, 12]


def test_a_medium_is_never_cut():
    """Not even one of which another row shows less."""
    more, less = (MediaSpan(key="x", start=10, length=n, grid=None) for n in (6, 4))
    rows = [row([*PROMPT[:10], *[PAD] * s.length, 1, 1, 2], [s.length + 11], [s]) for s in (more, less)]
    assert arrange(rows).shared[1] == 10


def test_batches_end_between_groups():
    rows = [r for start in (100, 200, 300) for r in group(range(start, start + 30), [1] * 5, [2] * 5, [3] * 5)]
    assert shared_batches(arrange(rows), 100) == [range(6), range(6, 9)]
    assert shared_batches(arrange(rows), 10**6) == [range(9)]


def test_batches_are_even_where_that_cuts_no_group():
    rows = [r for start in (100, 200, 300, 400) for r in group(range(start, start + 30), [1] * 5, [2] * 5)]
    arranged = arrange(rows)
    assert shared_batches(arranged, 120) == [range(6), range(6, 8)]
    assert even_batches(arranged, 120) == [range(4), range(4, 8)]
    assert even_batches(arranged, 160) == [range(8)]


def test_a_group_of_a_prompt_beyond_the_limit_stays_whole():
    rows = group(range(100, 400), *[[n] * 10 for n in range(8)])
    assert len(shared_batches(arrange(rows), 50)) == 1


def test_long_rows_that_are_no_siblings_do_not_come_along():
    rows = [r for start in (100, 1000) for r in group([*PROMPT, *range(start, start + 300)], [1] * 9, [2] * 9)]
    assert shared_batches(arrange(rows), 400) == [range(2), range(2, 4)]
    alone = [row([*PROMPT, *range(start, start + 300)], [310]) for start in (100, 1000, 2000)]
    assert shared_batches(arrange(alone), 100) == [range(1), range(1, 2), range(2, 3)]


def test_a_group_whose_responses_are_beyond_the_limit_is_cut():
    rows = group(range(100, 130), *[[n] * 30 for n in range(8)])
    arranged = arrange(rows)
    batches = shared_batches(arranged, 120)
    assert [i for batch in batches for i in batch] == list(range(8))
    assert all(len(pack([rows[i] for i in batch]).ids_T) == arranged.num_tokens(batch) <= 120 for batch in batches)


def test_rows_that_share_nothing_are_not_packed_where_that_costs_more():
    alike = [row(list(range(n, n + 40)), [30, 31]) for n in range(0, 400, 50)]
    assert not any(batch.packed for batch in plan([*alike], 10**6, sharing=False))
    assert all(batch.packed for batch in plan(group(PROMPT * 10, [1] * 9, [2] * 9), 10**6, sharing=True))


@pytest.mark.parametrize("sharing", [False, True])
@pytest.mark.parametrize("limit", [1, 30, 60, 10**6])
def test_every_row_is_whole_in_one_micro_batch(limit, sharing):
    """A ratio or a weight of a trajectory is taken over all of its targets."""
    rows = [r for start in (100, 200) for r in group(range(start, start + 20), [1] * 9, [2] * 50, [3])]
    batches = plan(rows, limit, sharing=sharing)
    assert sorted(i for batch in batches for i in batch.rows) == list(range(6))
    assert len(batches) == 1 or limit < 10**6


branch = st.lists(st.integers(1, 3), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), branch, branch), min_size=1, max_size=8), st.data())
def test_every_row_is_found_again_on_its_path(shapes, data):
    prompts = [PROMPT, PROMPT[:9], [*PROMPT, 1, 1, 1, 1]]
    rows = []
    for number, first, second in shapes:
        ids = [*prompts[number], *first, *second]
        targets = data.draw(st.sets(st.integers(len(prompts[number]), len(ids) - 1), min_size=1))
        rows.append(row(ids, targets))
    packed = pack(rows)
    assert len(packed.ids_T) == packed.nodes[-1].below if packed.nodes else 0
    sources = iter(packed.source_N.tolist())
    for made in rows:
        for source in made.source_N:
            seen = path(packed, next(sources))
            assert packed.ids_T[seen].tolist() == made.ids_T[: source + 1].tolist()
            assert packed.positions_3T[:, seen].tolist() == made.positions_3T[:, : source + 1].tolist()
    assert packed.target_N.tolist() == [i for made in rows for i in made.target_N]


def path(packed, token):
    """The tokens that a token sees, itself included."""
    seen = [range(n.start, n.end) for n in packed.nodes if n.end <= token < n.below]
    own = next(n for n in packed.nodes if n.start <= token < n.end)
    return [i for part in [*seen, range(own.start, token + 1)] for i in part]
