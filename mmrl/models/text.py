"""Text with control tokens: what a template writes is a control, what a user or tool writes never is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmrl.types import MediaSpan, Tokens


@dataclass(frozen=True, slots=True)
class Control:
    """A control token that a template puts there itself."""

    token: str


@dataclass(frozen=True, slots=True)
class Slot:
    """The placeholders of a medium, one for each of its features. The span's `start` is set where it is placed."""

    token: str
    span: MediaSpan


Piece = str | Control | Slot


def encode_pieces(tokenizer: Any, pieces: Sequence[Piece]) -> Tokens:
    """Ids of `pieces`; neighbouring texts are tokenised together, as the rendered template would be."""
    ids: list[int] = []
    spans: list[MediaSpan] = []
    run: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            run.append(piece)
            continue
        ids += encode_text(tokenizer, "".join(run))
        run.clear()
        if isinstance(piece, Slot):
            spans.append(replace(piece.span, start=len(ids)))
        count = piece.span.length if isinstance(piece, Slot) else 1
        ids += [control_id(tokenizer, piece.token)] * count
    return Tokens(ids=(*ids, *encode_text(tokenizer, "".join(run))), spans=tuple(spans))


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
    # Qwen's own tokenizers give <|endoftext|> for what they do not know: it is itself all the same.
    if found is None or (found == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise ValueError(f"the tokenizer has no token {token!r}: is this checkpoint of the family you named?")
    return int(found)
