"""Rollout engine on vLLM, in this process: features come from our cache, weights from the trainer's model.

vLLM expands placeholders by itself, places media by itself and keeps what it computed under the hash of tokens and
features: siblings and later turns find the keys of what they share there. What it made of a prompt is checked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmrl.cache.features import FeatureCache
from mmrl.errors import ConfigError
from mmrl.models.load import Checkpoint, hub_weights
from mmrl.models.qwen2_vl import Qwen2VL, Qwen25VL
from mmrl.protocols import Completion, Request
from mmrl.rollout.inflight import Episode
from mmrl.rollout.waves import Waves


class VllmEngine(Waves):
    """Implements RolloutEngine in process.

    Args:
        folder: of the checkpoint, for its configuration and tokenizer.
        arguments: of vllm.LLM, in place of ours.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        features: FeatureCache,
        folder: str | Path,
        *,
        batch_size: int,
        deterministic: bool,
        max_context: int,
        max_media: int,
        arguments: Mapping[str, Any],
    ) -> None:
        super().__init__(features, batch_size=batch_size, deterministic=deterministic)
        if type(checkpoint.family) not in (Qwen2VL, Qwen25VL):
            raise ConfigError("rollout.engine: vllm takes Qwen2-VL and Qwen2.5-VL so far; use hf")
        if checkpoint.adapter is not None:
            raise ConfigError("rollout.engine: vllm takes no model.lora so far; use hf")
        assert isinstance(checkpoint.family, Qwen25VL)
        self.checkpoint, self.family = checkpoint, checkpoint.family
        vocabulary = checkpoint.model.lm_head.weight.shape[0]
        self.allowed = [i for i in range(vocabulary) if i not in self.family.reserved_ids]
        self.llm = build_llm(
            {
                "model": str(folder),
                "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
                "max_model_len": max_context,
                "max_num_batched_tokens": max(max_context, 8192),  # an item must fit one batch
                "limit_mm_per_prompt": {"image": max_media, "video": max_media},
                **arguments,
            }
        )
        self._stale = True

    def weights_changed(self, *, vision: bool) -> None:
        super().weights_changed(vision=vision)
        self._stale = True

    @torch.no_grad()
    def decode(self, requests: Sequence[Request]) -> list[Completion]:
        """Continue every request's episode by one turn."""
        if self._stale:
            self._take_weights()
        episodes = [self._episodes[request.episode] for request in requests]
        for episode, request in zip(episodes, requests, strict=True):
            episode.append(request.new, request.media)
        prompts = [self._prompt(episode) for episode in episodes]
        outputs = self.llm.generate(prompts, [self._sampling(request) for request in requests], use_tqdm=False)
        return [
            self._completion(episode, request, output)
            for episode, request, output in zip(episodes, requests, outputs, strict=True)
        ]

    def _take_weights(self) -> None:
        """The trainer's weights, and nothing that was computed with others."""
        weights = hub_weights(self.checkpoint.model, self.checkpoint.kind)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.apply_model(_pack_tied_head)
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_encoder_cache()
        self._stale = False

    def _prompt(self, episode: Episode) -> dict[str, Any]:
        """All tokens so far, with one placeholder for each medium."""
        ids = list(episode.ids)
        for span in reversed(episode.spans):
            ids[span.start : span.start + span.length] = ids[span.start : span.start + 1]
        return {"prompt_token_ids": ids, "multi_modal_data": dict(self._media(episode))}

    def _media(self, episode: Episode) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        shown = [episode.media[span.key] for span in episode.spans]
        features = self.features.encode(shown)
        patching = self.family.patching
        for kind in ("image", "video"):
            spans = [span for span in episode.spans if episode.media[span.key].kind == kind]
            if not spans:
                continue
            grids = [
                (t, h * patching.merge, w * patching.merge) for t, h, w in (span.grid or (0, 0, 0) for span in spans)
            ]
            found = {
                f"{kind}_embeds": torch.cat([features[span.key] for span in spans]),
                f"{kind}_grid_thw": torch.tensor(grids),
            }
            if kind == "video":
                seconds = [patching.seconds_per_step(episode.media[span.key]) for span in spans]
                found["second_per_grid_ts"] = torch.tensor(seconds)
            yield kind, found

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=request.temperature,
            seed=request.seed,
            max_tokens=request.max_tokens,
            stop_token_ids=list(self.family.eos_ids),
            ignore_eos=True,
            stop=list(request.stop),
            include_stop_str_in_output=True,
            detokenize=bool(request.stop),
            allowed_token_ids=self.allowed,
            logprobs=0,
        )

    def _completion(self, episode: Episode, request: Request, output: Any) -> Completion:
        if len(output.prompt_token_ids) != len(episode.ids):
            raise RuntimeError(
                f"episode {request.episode}: vLLM made {len(output.prompt_token_ids)} tokens of a prompt of "
                f"{len(episode.ids)}: it counts a medium otherwise than the family does"
            )
        (found,) = output.outputs
        ids = tuple(found.token_ids)
        episode.ids += ids
        return Completion(
            ids=ids,
            logprobs=tuple(step[i].logprob for i, step in zip(ids, found.logprobs, strict=True)),
            version=self.version,
            stopped=found.finish_reason == "stop",
        )


def _pack_tied_head(model: torch.nn.Module) -> None:
    """On a CPU a head has a packed copy of its weight, which a reload forgets where the weight is the embeddings'."""
    for module in model.modules():
        if type(module).__name__ == "ParallelLMHead" and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)  # type: ignore[operator, union-attr]


def build_llm(arguments: Mapping[str, Any]) -> Any:
    """vLLM in this process, which computes no media and gives log-probs of the distribution that it samples from."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        from vllm import LLM
    except ImportError:
        raise ConfigError("rollout.engine: vllm is not installed; pip install 'mmrl[vllm]', or use hf") from None
    ours = {
        "enforce_eager": not torch.cuda.is_available(),
        "enable_mm_embeds": True,
        "logprobs_mode": "processed_logprobs",
    }
    return LLM(**{**ours, **arguments})
