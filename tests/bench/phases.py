"""Where a step's seconds or operations go: encode, prefill, decode, the rest of the rollout, update.

Hooks on the model's own parts tell the phases apart, so that they mean the same in every framework.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from typing import Any, Literal

Part = Literal["rollout", "update"]


class Phases:
    """Sums up what a meter shows, by phase.

    Args:
        model: Qwen2.5-VL of transformers. Its first text forward in a rollout is the prefill, later ones decode.
        outside: the part of a step that runs outside of wrapped methods.
    """

    def __init__(self, model: Any, *, outside: Part) -> None:
        self.outside, self.part = outside, outside
        self.spent: dict[str, float] = {}
        self.prompt_tokens = 0
        self.meter: Callable[[], float] = lambda: 0.0
        self._hook(model.model.visual, lambda: "encode")
        self._hook(model.model.language_model, self._text_phase)
        self._hook(model.lm_head, lambda: "decode")
        model.model.language_model.register_forward_pre_hook(self._note_length, with_kwargs=True)

    def start(self, meter: Callable[[], float]) -> None:
        """A step begins."""
        self.meter, self.part = meter, self.outside
        self.spent = defaultdict(float)
        self._first, self._forwards = meter(), 0
        self._since = self._first

    def end(self) -> dict[str, float]:
        """What the step took, as a whole and by phase."""
        self._switch(self.outside)
        names = ("encode", "prefill", "decode", "rollout", "update")
        return {"step": self._since - self._first, **{name: self.spent[name] for name in names}}

    def wrap(self, owner: Any, method: str, part: Part) -> None:
        """Let a method of `owner` be the place where `part` happens."""
        inner = getattr(owner, method)

        @wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._switch(part)
            try:
                return inner(*args, **kwargs)
            finally:
                self._switch(self.outside)

        setattr(owner, method, timed)

    def _switch(self, part: Part) -> None:
        now = self.meter()
        self.spent[self.part] += now - self._since
        self._since, self.part = now, part

    def _text_phase(self) -> str:
        self._forwards += 1
        return "prefill" if self._forwards == 1 else "decode"

    def _hook(self, module: Any, phase: Callable[[], str]) -> None:
        begun = 0.0

        def before(*_: Any) -> None:
            nonlocal begun
            if self.part == "rollout":
                begun = self.meter()

        def after(*_: Any) -> None:
            if self.part == "rollout":
                self.spent[phase()] += self.meter() - begun

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def _note_length(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if self.part == "rollout" and self._forwards == 0:
            self.prompt_tokens = kwargs["inputs_embeds"].shape[1]
