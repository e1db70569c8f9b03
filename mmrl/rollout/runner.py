"""Plays the episodes of a batch: G siblings of every prompt, all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from mmrl.data.dataset import Loaded
from mmrl.protocols import ModelFamily, PolicyEngine, RewardContext, RolloutEngine, Tool
from mmrl.rollout.episode import Episode, Limits, Prompt, Rules, Sampling
from mmrl.rollout.toolbox import Toolbox
from mmrl.scoring import WeightedReward, score_group
from mmrl.types import Group, Message, Part, Tokens, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Everything that stays the same from batch to batch."""

    engine: PolicyEngine
    family: ModelFamily
    tools: tuple[Tool, ...]
    limits: Limits
    system: str
    error_chars: int
    rules: Rules = Rules()

    def prompt(self, loaded: Loaded, row: int, *, use_tools: bool = True) -> Prompt:
        """Encode a sample for its group."""
        tools = self.tools if use_tools and loaded.sample.use_tools else ()
        tokens = encode_prompt(loaded, self.family, tools, {step.tool for step in self.rules.script}, self.system)
        return Prompt(sample=loaded.sample, media=loaded.media, tokens=tokens, row=row, use_tools=bool(tools))

    async def play(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        sampling: Sampling,
        rewards: Sequence[WeightedReward],
        context: RewardContext,
        on_group: Callable[[Group], None] = lambda group: None,
    ) -> list[Group]:
        """One scored group per prompt, in order. `on_group` is told as each is ready."""
        episodes = [
            [self.episode(prompt, sibling, sampling, self.engine) for sibling in range(group_size)]
            for prompt in prompts
        ]
        for siblings in episodes:
            for episode in siblings:
                self.engine.open(episode.name, str(episode.prompt.row))
        tasks = [
            self._group(prompt, siblings, rewards, context, on_group)
            for prompt, siblings in zip(prompts, episodes, strict=True)
        ]
        return list(await asyncio.gather(*tasks))

    def episode(self, prompt: Prompt, sibling: int, sampling: Sampling, engine: RolloutEngine) -> Episode:
        """One sibling of a prompt, played with `engine`."""
        return Episode(
            prompt,
            sibling,
            engine=engine,
            family=self.family,
            toolbox=Toolbox(self.tools if prompt.use_tools else (), error_chars=self.error_chars),
            limits=self.limits,
            sampling=sampling,
            rules=self.rules if prompt.use_tools else replace(self.rules, script=()),
        )

    async def _group(
        self,
        prompt: Prompt,
        episodes: Sequence[Episode],
        rewards: Sequence[WeightedReward],
        context: RewardContext,
        on_group: Callable[[Group], None],
    ) -> Group:
        trajectories: list[Trajectory] = list(await asyncio.gather(*(episode.run() for episode in episodes)))
        group = Group(sample=prompt.sample, trajectories=tuple(trajectories))
        scored = await score_group(group, rewards, context)
        on_group(scored)
        return scored


def encode_prompt(
    loaded: Loaded, family: ModelFamily, tools: Sequence[Tool], scripted: Collection[str], system: str
) -> Tokens:
    """A row as the model is given it.

    Args:
        scripted: names of tools that fixed turns use: the model is not told of them.
        system: for a row that brings no system message of its own.
    """
    messages = list(loaded.sample.messages)
    if system and all(message.role != "system" for message in messages):
        messages.insert(0, Message(role="system", parts=(Part(text=system),)))
    told = [tool for tool in tools if loaded.sample.use_tools and tool.name not in scripted]
    return family.encode_prompt(messages, loaded.media, told)
