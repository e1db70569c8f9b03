"""One GRPO step of TRL's GRPOTrainer: its own training loop, held between the steps."""

from __future__ import annotations

import json
from typing import Any

import torch
from datasets import Dataset, Image
from transformers import AutoProcessor, PrinterCallback, Qwen2_5_VLForConditionalGeneration, TrainerCallback
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from tests.bench.reward import checksum_reward
from tests.bench.task import QUESTION, Setup
from tests.bench.turns import Turns

SUPPRESSED = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<|im_end|>")
"""What mmrl suppresses, and the end token: every response has the full length."""


def serve(turns: Turns) -> None:
    trainer = build_trainer(turns.setup)
    phases = turns.ready(trainer.model, outside="update")
    phases.wrap(trainer, "_generate_and_score_completions", "rollout")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Paced(turns, trainer))
    trainer.train()


class Paced(TrainerCallback):
    """Waits for its turn before every step. A step runs from there to the next one: with the reading of its rows."""

    def __init__(self, turns: Turns, trainer: Any) -> None:
        self.turns, self.trainer = turns, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.turns.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        written = self.trainer._buffered_inputs[0]["completion_mask"].sum(1).float().mean()
        self.turns.done(prompt_tokens=self.turns.phases.prompt_tokens, response_tokens=float(written))
        control.should_training_stop = not self.turns.wait()


def build_trainer(setup: Setup) -> GRPOTrainer:
    logging.disable_progress_bar()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        setup.folder / "model", dtype=getattr(torch, setup.dtype)
    )
    model.model.visual.requires_grad_(not setup.freeze_vision)
    processor = AutoProcessor.from_pretrained(setup.folder / "model")
    return GRPOTrainer(
        model=model,
        reward_funcs=checksum_reward,
        args=trainer_config(setup, processor.tokenizer),
        train_dataset=read_rows(setup),
        processing_class=processor,
    )


def trainer_config(setup: Setup, tokenizer: Any) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(setup.folder / "trl"),
        per_device_train_batch_size=setup.case.group_size,
        num_generations=setup.case.group_size,
        max_completion_length=setup.case.response_tokens,
        generation_kwargs={"suppress_tokens": tokenizer.convert_tokens_to_ids(list(SUPPRESSED))},
        temperature=1.0,
        beta=0.0,
        learning_rate=setup.learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        bf16=setup.dtype == "bfloat16",
        use_cpu=setup.device == "cpu",
        gradient_checkpointing=False,
        max_steps=10**6,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def read_rows(setup: Setup) -> Dataset:
    rows = [json.loads(line) for line in (setup.folder / "rows.jsonl").read_text().splitlines()]
    prompt = [{"role": "user", "content": QUESTION}]
    columns = {
        "prompt": [prompt for _ in rows],
        "image": [str(setup.folder / row["images"][0]) for row in rows],
    }
    return Dataset.from_dict(columns).cast_column("image", Image())
