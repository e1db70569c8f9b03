"""Rollout engine on vLLM, in this process or in servers: features come from our cache, weights from the trainer.

Episodes are coroutines: each asks for its next turn as soon as it can, and vLLM decodes together what is asked at a
time. vLLM keeps the keys of what it computed: siblings and later turns find those of what they share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from mmrl.cache.features import FeatureCache
from mmrl.cache.shared import Publisher, SharedFeatures, Slice
from mmrl.models.chatml import ChatML
from mmrl.protocols import Completion, Request
from mmrl.rollout.inflight import Episode
from mmrl.rollout.vllm_prompt import Call, Item, check_span, describe
from mmrl.rollout.vllm_worker import Weights
from mmrl.types import Tokens


class Backend(Protocol):
    """vLLM, wherever it runs."""

    async def generate(self, call: Call) -> Completion:
        """One model turn, written by the latest weights. Calls of a group go to the same prefix cache."""
        ...

    def take_weights(self, version: int, weights: Callable[[], Weights]) -> None:
        """Use these weights from now on, and nothing that others computed; called while nothing is written."""
        ...

    def sleep(self) -> None:
        """The trainer needs the device."""
        ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


class VllmEngine:
    """Implements RolloutEngine.

    Args:
        weights: the trainer's weights under their names in the hub's files.
    """

    def __init__(
        self,
        backend: Backend,
        family: ChatML,
        features: FeatureCache,
        shared: SharedFeatures,
        weights: Callable[[], Weights],
    ) -> None:
        self.backend, self.family, self.features, self.shared, self.weights = backend, family, features, shared, weights
        self.version = 0
        self._episodes: dict[str, Episode] = {}
        self._groups: dict[str, str] = {}
        """Group of each open episode."""
        self._open: Counter[str] = Counter()
        """Open episodes of each group."""
        self._stale, self._asleep = True, False
        self._holds = False
        """Whether rollouts may be in flight while the trainer goes on."""
        self._vision = 0
        """Version of the towers' weights."""
        self.publisher = Publisher(features, shared)

    def check(self, prompt: Tokens) -> None:
        for span in prompt.spans:
            check_span(span)

    def open(self, episode: str, group: str) -> None:
        if not self._holds:
            self._refresh()
        self._episodes[episode] = Episode()
        self._groups[episode] = group
        self._open[group] += 1

    def release(self, episode: str) -> None:
        if self._episodes.pop(episode, None) is not None:
            group = self._groups.pop(episode)
            self._open[group] -= 1
            self.shared.release(episode)

    def hold(self) -> None:
        """Take the newest weights now, and no others until `let_go`: the trainer may go on while episodes are open."""
        self._refresh()
        self._holds = True

    def let_go(self) -> None:
        """The rollouts have ended; episodes that were cut off are released."""
        for episode in list(self._episodes):
            self.release(episode)
        self._holds = False

    def weights_changed(self, *, vision: bool) -> None:
        """Enter the next policy version. Features survive unless the vision tower was trained."""
        assert self._holds or not self._episodes, "weights may only change between episodes"
        assert not (self._holds and vision), "rollouts in flight use the features of the towers as they were"
        self.version += 1
        self._stale = True
        if vision:
            self._vision += 1
            self.features.clear()

    def sleep(self) -> None:
        """Rollouts are done for now: the trainer needs the device. The weights are taken anew afterwards.

        Nothing happens while weights are held.
        """
        if not (self._asleep or self._holds):
            self.backend.sleep()
            self._asleep = True

    def close(self) -> None:
        self.publisher.close()
        self.backend.close()
        self.shared.close()

    async def generate(self, request: Request) -> Completion:
        episode = self._episodes[request.episode]
        episode.append(request.new, request.media)
        items = self._items(episode)
        await self._publish(request.episode, episode, items)
        completion = await self.backend.generate(self._call(request, episode, items))
        episode.ids += completion.ids
        return completion

    def _refresh(self) -> None:
        """Have the backend ready, with the newest weights."""
        if self._asleep:
            self.backend.wake()
            self._asleep, self._stale = False, True
        if self._stale:
            self.backend.take_weights(self.version, self.weights)
            self._stale = False

    def _items(self, episode: Episode) -> list[Item]:
        towers = f"{self.shared.run}.{self._vision}"
        return [
            describe(self.family, span, episode.media[span.key], f"{towers}.{span.key}.{span.offset}")
            for span in episode.spans
        ]

    async def _publish(self, name: str, episode: Episode, items: Sequence[Item]) -> None:
        """Features of all the episode's media lie where vLLM reads them."""
        wanted = {
            item.name: Slice(medium=episode.media[span.key], start=span.offset, length=span.length)
            for span, item in zip(episode.spans, items, strict=True)
        }
        await self.publisher.publish(wanted, name)

    def _call(self, request: Request, episode: Episode, items: Sequence[Item]) -> Call:
        return Call(
            request=request,
            ids=tuple(episode.ids),
            items=tuple(items),
            stop_ids=self.family.eos_ids,
            suppressed_ids=self.family.reserved_ids,
            # A group that is nearly finished goes first: it can be scored, and its prompt forgotten.
            priority=self._open[request.group],
        )
