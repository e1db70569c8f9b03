"""mmrl's update alone: the features of media are there already, and nobody writes the responses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mmrl.algo.loss import SftLoss
from mmrl.config import GrpoStage, OptimizerSection, constant
from mmrl.models.load import load_checkpoint
from mmrl.train.engine import TorchEngine
from mmrl.train.optim import build_optimizer, select_parameters, set_learning_rate
from mmrl.train.rows import build_row
from mmrl.types import CoordinateFrame, Media, MediaSpan, Row, Segment, Source, StopReason, Trajectory
from tests.bench.task import SIDE, Case, Update, grid
from tests.bench.turns import Turns

TEXT_TOKENS = 16
"""Of a prompt, on either side of its medium."""
WARM_UP = Case(prompt_tokens=64, group_size=2, response_tokens=8)


def serve(turns: Turns) -> None:
    setup = turns.setup
    assert isinstance(setup, Update)
    checkpoint = load_checkpoint(setup.folder / "model", family=None, dtype=setup.dtype, device=setup.device)
    model, family = checkpoint.model, checkpoint.family
    features: dict[str, torch.Tensor] = {}
    # Whatever an engine does to reach features, it finds those of a tower that is frozen and has seen the media.
    family.parts = lambda medium: (medium,)
    family.encode_media = lambda model, media: [features[medium.key] for medium in media]
    section = OptimizerSection(lr=constant(setup.learning_rate))
    parameters = select_parameters(model, ["*"], ["model.visual.*"])
    optimizer = build_optimizer(parameters, section)
    set_learning_rate(optimizer, section, 0)
    engine = TorchEngine(
        model,
        family,
        optimizer,
        micro_batch_tokens=GrpoStage.model_fields["micro_batch_tokens"].default,
        max_grad_norm=section.max_grad_norm,
        sharing=setup.way == "shared",
    )
    engine.checkpoint_activations(setup.checkpointing)
    warm_up = make_rows(WARM_UP, None, checkpoint, features)
    work = make_rows(setup.case, setup.frames, checkpoint, features)
    turns.ready(model, outside="update")
    engine.update(*warm_up, loss_of(WARM_UP))
    while turns.wait():
        engine.update(*work, loss_of(setup.case))
        turns.done()


def loss_of(case: Case) -> SftLoss:
    """Weights of +1 and -1, as advantages have both signs."""
    sign_G = torch.tensor([1.0, -1.0]).repeat(case.group_size)[: case.group_size]
    targets = case.group_size * case.response_tokens
    return SftLoss(coef_N=sign_G.repeat_interleave(case.response_tokens).double() / targets)


def make_rows(
    case: Case, frames: int | None, checkpoint: Any, features: dict[str, torch.Tensor]
) -> tuple[list[Row], dict[str, Media]]:
    """G rows of random ids behind one prompt, and the prompt's medium, whose random features go into `features`."""
    rng = np.random.default_rng(0)
    family, config = checkpoint.family, checkpoint.model.config
    medium, span = make_medium(case.prompt_tokens - 2 * TEXT_TOKENS, frames)
    behind = case.prompt_tokens - TEXT_TOKENS - span.length
    shape = (span.length, config.get_text_config().hidden_size)
    noise = torch.from_numpy(rng.normal(0, 0.02, shape).astype(np.float32))
    features[medium.key] = noise.to(checkpoint.model.device, checkpoint.model.dtype)
    pad = config.video_token_id if frames else config.image_token_id

    def text(length: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(0, len(family.tokenizer) // 2, length))

    prompt = Segment(
        source=Source.PROMPT,
        ids=(*text(TEXT_TOKENS), *[pad] * span.length, *text(behind)),
        spans=(span,),
    )
    rows = []
    for index in range(case.group_size):
        written = Segment(source=Source.MODEL, ids=text(case.response_tokens))
        trajectory = Trajectory(
            sample_id="0",
            index=index,
            segments=(prompt, written),
            turns=(),
            stop=StopReason.MAX_TOKENS,
            media={medium.key: medium},
        )
        rows.append(build_row(trajectory, family))
    return rows, {medium.key: medium}


def make_medium(tokens: int, frames: int | None) -> tuple[Media, MediaSpan]:
    """An image, or a video of `frames` frames, of at most `tokens` vision tokens; nobody looks at its pixels."""
    steps = (frames or 2) // 2
    height, width = grid(tokens // steps)
    seen = (width * SIDE, height * SIDE)
    pixels = np.broadcast_to(np.uint8(0), ((frames,) if frames else ()) + (seen[1], seen[0], 3))
    key = f"{frames}-{tokens}"
    frame = CoordinateFrame(original=seen, seen=seen)
    medium = Media(kind="video" if frames else "image", key=key, data=pixels, frame=frame)
    span = MediaSpan(key=key, start=TEXT_TOKENS, length=steps * height * width, grid=(steps, height, width))
    return medium, span
