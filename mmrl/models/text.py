"""Text with control tokens: what a template writes is a control, what a user or tool writes never is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Control:
    """A control token that a template puts there itself, `count` times over."""

    token: str
    count: int = 1


Piece = str | Control


def encode_pieces(tokenizer: Any, pieces: Sequence[Piece]) -> list[int]:
    """Token ids of `pieces`; neighbouring texts are tokenised together, as the rendered template would be."""
    ids: list[int] = []
    run: list[str] = []
    for piece in [*pieces, Control("", 0)]:
        if isinstance(piece, str):
            run.append(piece)
            continue
        ids += encode_text(tokenizer, "".join(run))
        run.clear()
        if piece.count:
            ids += [control_id(tokenizer, piece.token)] * piece.count
    return ids


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text`, in which a control token's spelling is text like any other."""
    if not text:
        return []
    # Lone surrogates cannot be encoded as UTF-8.
    clean = text.encode("utf-8", errors="replace").decode("utf-8")
    ids: list[int] = tokenizer.encode(clean, add_special_tokens=False, split_special_tokens=True)
    return ids


def control_id(tokenizer: Any, token: str) -> int:
    """Id of a control token; ValueError where the tokenizer has none."""
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or found == tokenizer.unk_token_id:
        raise ValueError(f"the tokenizer has no token {token!r}: is this checkpoint of the family you named?")
    return int(found)
