"""The configuration of a run: YAML, checked key by key; unknown keys are errors.

Nothing here imports torch or transformers, so that the command line answers at once.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from mmrl.errors import ConfigError
from mmrl.resolve import suggest


class Model(BaseModel):
    """Base of every section."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Plugin(BaseModel):
    """Something built by import path; every key beside `use` is a field of it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    use: str
    """'package.module:Name' or 'path/to/file.py:Name'."""

    @property
    def fields(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Schedule(Model):
    """A number that changes over a stage. A plain number is a constant."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    start: float
    """Value at step 0."""
    end: float | None = None
    """Value from step `steps` on."""
    steps: int = Field(default=1, ge=1)
    """Steps from start to end."""

    @model_validator(mode="after")
    def _needs_end(self) -> Schedule:
        if self.kind != "constant" and self.end is None:
            raise ValueError(f"a {self.kind} schedule needs 'end'")
        return self

    def at(self, step: int) -> float:
        """The value at a step, from 0."""
        if self.kind == "constant" or self.end is None:
            return self.start
        done = min(step / self.steps, 1.0)
        if self.kind == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done


def _constant(value: Any) -> Any:
    return {"start": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Scalar = Annotated[Schedule, BeforeValidator(_constant)]


def constant(value: float) -> Schedule:
    return Schedule(start=value)


class LoraSection(Model):
    rank: int = Field(default=16, ge=1)
    """Of the two matrices that make up a layer's change."""
    alpha: int = Field(default=32, ge=1)
    """What an adapter adds is scaled by alpha / rank."""
    targets: list[str] | None = Field(default=None, min_length=1)
    """Linear layers that get one, by patterns for their whole names, e.g. "*.q_proj"; None is every one of the text
    model. The head gets none."""


class ModelSection(Model):
    path: str
    """Folder of the checkpoint, or its hub id. {seed} stands for the run's seed."""
    family: str | None = None
    """Model family; None reads it from the checkpoint."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights; bfloat16 weights are trained through float32 copies."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    lora: LoraSection | None = None
    """Train an adapter beside the frozen weights; None trains the weights themselves."""


class DataSection(Model):
    image: Plugin = Plugin(use="mmrl.processors.image:Image")
    """How images are loaded."""
    video: Plugin = Plugin(use="mmrl.processors.video:Video")
    """How videos are loaded."""
    audio: Plugin = Plugin(use="mmrl.processors.audio:Audio")
    """How audios are loaded."""
    max_bad_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of unusable rows at which the run stops."""
    cached_bytes: int = Field(default=1 << 30, ge=0)
    """Bytes of decoded media that are kept in memory."""
    prefetch_steps: int = Field(default=1, ge=0)
    """Steps whose media are decoded ahead, in the background and within half of cached_bytes; 0 is none."""


class CacheSection(Model):
    memory_bytes: int = Field(default=2 << 30, ge=0)
    """Bytes of features that are kept in the device's memory."""
    chunk_tokens: int = Field(default=4096, ge=1)
    """Tokens that go through a media tower at once."""
    folder: str | None = None
    """Folder where features are kept between runs, which may share it; None keeps none on disk. Only those of a tower
    that no stage trains so far."""
    disk_bytes: int = Field(default=50 << 30, ge=0)
    """Bytes of features that are kept there."""


class RowsFile(Model):
    path: str
    """File of rows (.jsonl, .json, .parquet), or a hub's data set (owner/name or owner/name:split)."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Share of the rows that are drawn from it, beside the weights of the other files."""
    format: str | None = None
    """Format of its rows; None chooses by their columns."""
    media_root: str | None = None
    """Folder that paths of media start from and may not leave; None is the file's own."""


def _as_files(value: Any) -> Any:
    if isinstance(value, (dict, RowsFile)):
        return [value]
    if not isinstance(value, (str, list, tuple)) or not value:
        raise ValueError("must be a path, or a list of at least one file with 'path' and 'weight'")
    return value


ONE, SEVERAL = "(path)", "(files)"
"""pydantic puts these into the places of errors; they are no keys."""
Rows = Annotated[
    Annotated[str, Tag(ONE)] | Annotated[tuple[RowsFile, ...], Tag(SEVERAL)],
    Discriminator(lambda value: ONE if isinstance(value, str) else SEVERAL),
    BeforeValidator(_as_files),
]
"""A path, or files with options: one of them, or a list that is drawn from in proportion to the weights."""


class ScriptStep(Model):
    tool: str
    """Name of the tool that is given the box (or other arguments) which the turn writes as fenced JSON."""
    then: str
    """The user's next words; <media> is what the tool gave, {question} the row's question."""
    otherwise: str
    """The user's next words where the turn names nothing that can be shown; <media> is the row's first medium."""
    stop: list[str] = ["]\n```"]
    """Strings that end the turn."""


class EpisodeSection(Model):
    tools: list[Plugin] = []
    """What the model may call."""
    system: str = ""
    """System prompt, before the list of tools."""
    max_turns: int = Field(default=4, ge=1)
    """Model turns."""
    max_calls: int = Field(default=4, ge=0)
    """Tool calls in an episode, malformed ones included."""
    max_calls_per_turn: int = Field(default=1, ge=1)
    max_media: int = Field(default=8, ge=1)
    """Images, videos and audios in an episode, the prompt's included."""
    max_context: int = Field(default=4096, ge=1)
    """Tokens in an episode."""
    max_turn_tokens: int = Field(default=512, ge=1)
    """Tokens in a model turn."""
    error_chars: int = Field(default=200, ge=16)
    """Characters of an error text that the model is shown."""
    final_prefix: str = ""
    """Text put at the start of the last turn that the limits allow, e.g. "<answer>"; not trained on."""
    final_message: str = ""
    """What the user says when a limit on turns, calls or media is met, e.g. "Answer now."; one more turn follows, in
    which nothing is called. Empty: the episode ends there."""
    on_error: Literal["text", "image"] = "text"
    """What follows a call that cannot be met: the error, or the error and the first image again."""
    answer: Literal["tag", "boxed"] = "tag"
    """How a final answer is marked: <answer>...</answer> or \\boxed{...}."""
    stop: list[str] = []
    """Strings that end a turn, beside the end token."""
    script: list[ScriptStep] = []
    """Fixed turns before the free ones."""


class ServersSection(Model):
    """vLLM servers: `count` that the trainer starts, or those at `urls`, each started by `mmrl serve-engine`."""

    count: int | None = Field(default=None, ge=1)
    """Servers that are started on this machine, and started again where they die."""
    urls: list[Annotated[str, Field(pattern="^https?://")]] = []
    """Servers that run already, e.g. [http://host:8000]; after a restart they are given the weights again."""
    token_env: str = "MMRL_ENGINE_TOKEN"
    """Environment variable with the token of the servers at `urls`."""
    first_device: int = Field(default=1, ge=0)
    """GPU of the first server; each has tensor_parallel_size x data_parallel_size of them. 0 shares the trainer's."""
    timeout_s: float = Field(default=1800.0, gt=0)
    """Of a model turn, the time that it waits for its place included: a server that takes longer is started again."""
    start_timeout_s: float = Field(default=600.0, gt=0)
    """Until a server that starts, or starts again, is ready."""
    max_restarts: int = Field(default=3, ge=0)
    """Restarts in a row after which the run ends, where a server writes nothing between them."""

    @model_validator(mode="after")
    def _consistent(self) -> ServersSection:
        if (self.count is None) == (not self.urls):
            raise ValueError("give count, for servers that are started here, or urls of others, not both")
        return self


class RolloutSection(Model):
    engine: Literal["hf", "vllm"] = "hf"
    """What writes rollouts: transformers, or vLLM."""
    vllm: dict[str, Any] = {}
    """Further arguments of vLLM's engine, e.g. {gpu_memory_utilization: 0.5}."""
    servers: ServersSection | None = None
    """Where vLLM runs: None is in the trainer's process."""
    folder: str | None = None
    """Where vLLM reads media features, and its servers weights; those at `urls` see it under this path too. None is a
    new one in this machine's memory (/dev/shm)."""
    batch_size: int = Field(default=256, ge=1)
    """Episodes decoded together."""
    staleness: Literal[0, 1] = 0
    """1: vLLM writes the rollouts of the next step while this one's update runs, with the weights from before it. Only
    for stages that train no media encoder."""

    @model_validator(mode="after")
    def _consistent(self) -> RolloutSection:
        if self.staleness and self.engine != "vllm":
            raise ValueError("staleness 1 is for engine: vllm; hf writes with the trainer's own, changing model")
        if self.servers is not None and self.engine != "vllm":
            raise ValueError("servers are vLLM's: set engine: vllm")
        if self.servers is not None and self.servers.urls and self.vllm:
            raise ValueError("vllm is for engines that are started here: give these to mmrl serve-engine, by --set")
        if self.servers is not None and self.servers.urls and self.folder is None:
            raise ValueError("servers.urls need folder: where the servers see features and weights")
        return self


class RewardSection(Plugin):
    name: str = ""
    """Name in metrics and reports; by default the last part of `use`."""
    weight: Scalar = constant(1.0)

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name") and isinstance(values.get("use"), str):
            return {**values, "name": values["use"].rpartition(":")[2].lower()}
        return values


class OptimizerSection(Model):
    lr: Scalar
    """Learning rate of AdamW."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    max_grad_norm: float = Field(default=1.0, gt=0)


class ValidationSection(Model):
    rows: Rows
    """Held-out rows."""
    every: int = Field(ge=1)
    """Steps between validations."""
    limit: int | None = Field(default=None, ge=1)
    """Rows used, from the start of the file."""


class StageSection(Model):
    name: str = ""
    """Name in metrics and checkpoints; by default the type."""
    rows: Rows
    """What is trained on."""
    steps: int = Field(ge=0)
    """Optimiser steps."""
    optimizer: OptimizerSection
    train: list[str] = ["*"]
    """Parameters that are trained: patterns over their names."""
    freeze: list[str] = []
    """Parameters that are not, even where `train` names them."""
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Tokens in one forward, shared ones counted once; a row of more, with its siblings, goes alone."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer and compute the layer again in the backward: more time, less memory."""
    validation: ValidationSection | None = None


class SftStage(StageSection):
    type: Literal["sft"]
    examples_per_step: int = Field(ge=1)


class CorrectionSection(Model):
    """Weights against the mismatch between rollout engine and trainer: a token's policy loss is multiplied by the
    trainer's probability over the engine's, within bounds (mmrl/algo/correction.py)."""

    kind: Literal["none", "truncate", "mask"] = "truncate"
    """What a ratio out of bounds becomes: the upper bound, or 0."""
    level: Literal["token", "sequence"] = "token"
    """The ratio of each token, or the product over a trajectory, which grows with its length: for short ones only."""
    low: float = Field(default=0.0, ge=0, le=1)
    """Lower bound of a mask, e.g. 0.5."""
    high: float = Field(default=2.0, ge=1, allow_inf_nan=False)
    """Upper bound."""

    @model_validator(mode="after")
    def _consistent(self) -> CorrectionSection:
        if self.low and self.kind == "truncate":
            raise ValueError("low is a bound of kind 'mask'; 'truncate' has an upper one only")
        return self


def _as_kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class GrpoStage(StageSection):
    type: Literal["grpo"]
    prompts_per_step: int = Field(ge=1)
    group_size: int = Field(ge=1)
    """Rollouts of each prompt."""
    temperature: Scalar = constant(1.0)
    """Sampling temperature of the rollouts."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser updates that each batch of rollouts is split into, by whole groups."""
    epochs: int = Field(default=1, ge=1)
    """Passes over each batch of rollouts."""
    centre: Literal["mean", "loo", "none"] = "mean"
    """What a group's rewards are compared with."""
    scale: Literal["none", "std_group", "std_batch", "mean_group"] = "std_group"
    """What advantages are divided by."""
    clip_low: float = Field(default=0.2, ge=0)
    clip_high: float = Field(default=0.2, ge=0)
    dual_clip: float | None = Field(default=None, gt=1)
    ratio: Literal["token", "sequence"] = "token"
    aggregate: Literal["token_mean", "seq_mean", "const", "seq_sum", "token_sum", "question_mean"] = "token_mean"
    """How token losses add up to the step's loss."""
    aggregate_length: int | None = Field(default=None, ge=1)
    """Length that 'const' divides by, tokens."""
    kl_beta: Scalar = constant(0.0)
    """Weight of the KL penalty to the policy that the stage started from."""
    kl: Literal["k2", "k3"] = "k3"
    entropy_coef: Scalar = constant(0.0)
    """Weight of the entropy bonus."""
    correction: Annotated[CorrectionSection, BeforeValidator(_as_kind)] | None = None
    """Of the mismatch between rollout engine and trainer; "mask" is short for {kind: mask}. None: tokens' ratios
    truncated at 2, and no correction where rollout.engine is hf."""
    max_engine_gap: float | None = Field(default=0.05, gt=0)
    """Mean difference of the engine's and the trainer's log-probs above which the run warns, once a stage. With
    rollout.staleness the last update is a part of it in all steps but the first: from the sixth of these on the run
    warns where it is also above 3 times their median so far. A fault that was there from the first of them on is not
    told, and a run that is continued counts anew."""
    shuffle_advantages: bool = False
    """Control experiment: deal the batch's advantages to its trajectories at random."""

    @property
    def uses_reference(self) -> bool:
        """Whether the KL penalty is ever on."""
        return self.kl_beta.start > 0 or (self.kl_beta.end or 0) > 0

    def correction_of(self, rollout: RolloutSection) -> CorrectionSection | None:
        """The correction that holds for rollouts written so; None where there is none."""
        section = self.correction
        if section is None and rollout.engine != "hf":
            section = CorrectionSection()
        return None if section is None or section.kind == "none" else section

    @model_validator(mode="after")
    def _consistent(self) -> GrpoStage:
        if self.aggregate == "const" and self.aggregate_length is None:
            raise ValueError("aggregate 'const' needs aggregate_length, e.g. the longest response in tokens")
        if self.group_size < 2:
            raise ValueError("group_size must be at least 2: a rollout is compared with its siblings")
        if self.prompts_per_step % self.minibatches:
            raise ValueError("prompts_per_step must be a multiple of minibatches: groups are not split")
        return self


Stage = Annotated[SftStage | GrpoStage, Field(discriminator="type")]


class EvaluateSection(Model):
    rows: Rows
    """Held-out rows."""
    limit: int | None = Field(default=None, ge=1)
    """Rows used, from the start of the file."""
    before_stage: str | None = None
    """Name of a stage: the model is also evaluated before it, for the summary's comparison."""
    without_tools: bool = False
    """Also evaluate the final model without tools."""
    test_time: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], Plugin] = {}
    """Test-time strategies that are compared on the same rows, by name. `use` is an import path or a short name such
    as sparse-to-dense."""


class CheckpointSection(Model):
    every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 writes one at the end of each stage only."""
    keep: int = Field(default=2, ge=1)
    """Most recent checkpoints that are kept, beside the best."""
    best: str = "score/accuracy"
    """Validation metric by which the best checkpoint is chosen (higher is better)."""


class ReportSection(Model):
    trajectories: int = Field(default=40, ge=0)
    """Trajectories shown in report.html."""
    log_groups: int = Field(default=1, ge=0)
    """Groups of each step that are written to rollouts/stream.jsonl."""


class RunConfig(Model):
    name: str
    """The run directory is runs_dir/name."""
    runs_dir: str = "runs"
    seed: int = Field(default=0, ge=0)
    deterministic: bool = True
    """Batches do not depend on timing: a run repeats to the bit on CPU, resumed or not (not with rollout.engine vllm,
    which decodes together what is asked at a time)."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; None leaves torch's choice."""
    setup: list[Plugin] = []
    """Steps that make files before the run: objects with prepare(seed)."""
    model: ModelSection
    data: DataSection = DataSection()
    cache: CacheSection = CacheSection()
    episode: EpisodeSection = EpisodeSection()
    rollout: RolloutSection = RolloutSection()
    rewards: list[RewardSection] = []
    stages: list[Stage] = []
    evaluate: EvaluateSection | None = None
    checkpoint: CheckpointSection = CheckpointSection()
    report: ReportSection = ReportSection()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError("use letters, digits, '.', '_' and '-' only: it names a folder")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        for title, names in (
            ("rewards", [reward.name for reward in self.rewards]),
            ("stages", [stage_name(stage) for stage in self.stages]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"two {title} are named {twice[0]!r}: give one another 'name'")
        if any(stage.type == "grpo" for stage in self.stages) and not self.rewards:
            raise ValueError("a grpo stage needs at least one entry in 'rewards'")
        if len(self.episode.script) >= self.episode.max_turns:
            raise ValueError(f"episode.max_turns ({self.episode.max_turns}) must leave a turn behind the script's")
        before = self.evaluate.before_stage if self.evaluate else None
        if before is not None and before not in [stage_name(stage) for stage in self.stages]:
            raise ValueError(f"evaluate.before_stage names no stage: {before!r}")
        return self

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.name

    @property
    def model_path(self) -> str:
        return self.model.path.replace("{seed}", str(self.seed))


def stage_name(stage: SftStage | GrpoStage) -> str:
    return stage.name or stage.type


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: plain YAML 1.1 reads 1e-4 as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?(?:[eE][-+]?\d+)$"),
    list("-+0123456789"),
)


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """The checked configuration; ConfigError lists every problem, one line each.

    Args:
        overrides: "dotted.key=value", applied in order; list items by number ("stages.1.steps=10").
    """
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of keys")
    for override in overrides or []:
        _override(raw, override)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        lines = [_describe(problem) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that load_config reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"override {override!r}: write key=value")
    at: Any = raw
    parts = key.split(".")
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        place: Any = part
        if isinstance(at, list):
            if not part.isdigit() or int(part) >= len(at):
                held = f"items 0 to {len(at) - 1}" if at else "no items"
                raise ConfigError(f"override {key}: {'.'.join(parts[:number])} has {held}")
            place = int(part)
        elif not isinstance(at, dict):
            raise ConfigError(f"override {key}: {'.'.join(parts[:number])} is a plain value")
        if last:
            try:
                at[place] = yaml.load(text, Loader=_Loader)  # noqa: S506
            except yaml.YAMLError as error:
                raise ConfigError(f"override {key}: not valid YAML: {' '.join(str(error).split())}") from None
        else:
            at = at[place] if isinstance(at, list) else at.setdefault(place, {})


def _describe(problem: Any) -> str:
    loc = problem["loc"]
    # pydantic puts the stage's type behind its number
    parts = (*loc[:2], *loc[3:]) if loc[0:1] == ("stages",) else loc
    parts = tuple(part for part in parts if part not in (ONE, SEVERAL))
    place = ".".join(map(str, parts))
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        return f"{place}: unknown key{suggest(name, _siblings(problem['loc'])) or _elsewhere(name)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _siblings(location: tuple[Any, ...]) -> list[str]:
    """Names of the keys that are known where an unknown one stands."""
    model: Any = RunConfig
    for part in location[:-1]:
        if part in ("sft", "grpo"):
            model = SftStage if part == "sft" else GrpoStage
        elif not isinstance(part, int) and part in getattr(model, "model_fields", {}):
            model = _section(model.model_fields[part].annotation)
    return list(getattr(model, "model_fields", {}))


def _elsewhere(name: str) -> str:
    """Where in the configuration there is a key of this name, for one that stands in the wrong place."""
    sections = {key: _section(field.annotation) for key, field in RunConfig.model_fields.items() if key != "stages"}
    sections |= {"stages.N": StageSection, "stages.N.optimizer": OptimizerSection}
    sections |= {"stages.N of type sft": SftStage, "stages.N of type grpo": GrpoStage}
    found = [place for place, section in sections.items() if name in getattr(section, "model_fields", {})]
    return f"; it is a key of {found[0]}" if found else ""


def _section(annotation: Any) -> Any:
    """The section class inside an annotation such as `list[Stage]` or `Section | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section(argument)
        if found is not None:
            return found
    return None
