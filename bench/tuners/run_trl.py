"""TRL's SFTTrainer with PEFT's LoRA on the bench's work, one step at a time. Run by bench/tune_speed.py.

Settings of its own: `dtype` of the weights, `unsloth` (load and adapt through Unsloth's CPU path first), and anything
that SFTConfig knows. What makes the work equal (rows, order, optimizer, rate) is not a setting.
"""

import importlib.metadata
from typing import Any

from pace import Pace, arguments

pace, asked = Pace(), arguments()
own: dict[str, Any] = dict(asked.settings)
through_unsloth, dtype = own.pop("unsloth", None), own.pop("dtype", None)
if through_unsloth is not None:
    from unsloth import FastLanguageModel  # first: it changes what the imports below bring

import torch  # noqa: E402
from datasets import load_dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoTokenizer, TrainerCallback  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LINEAR = {"r": asked.rank, "lora_alpha": asked.alpha, "lora_dropout": 0.0, "target_modules": TARGETS}


def dialogue(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row in the form whose answer alone is supervised."""
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}


class Steps(TrainerCallback):
    """Lets the trainer make a step when told to, and tells its loss."""

    def __init__(self, counts: list[tuple[int, int]]) -> None:
        self.counts = counts

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any, **_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = asked.lr * min(1.0, (state.global_step + 1) / asked.warmup)
        pace.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        pace.end()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            rows = self.counts[(state.global_step - 1) * asked.batch : state.global_step * asked.batch]
            pace.report(logs["loss"], sum(r[0] for r in rows), sum(r[1] for r in rows))


def main() -> None:
    torch.set_num_threads(asked.threads)
    work = load_dataset("json", data_files=str(asked.rows), split="train", cache_dir=str(asked.work / "cache"))
    work = work.select(range(asked.batch * asked.steps)).map(dialogue, remove_columns=["messages"])
    given: dict[str, Any] = {}
    if through_unsloth is None:
        given = {"model": str(asked.model), "peft_config": LoraConfig(task_type="CAUSAL_LM", **LINEAR)}
        given["processing_class"] = AutoTokenizer.from_pretrained(asked.model)
        if dtype:
            own["model_init_kwargs"] = {**own.get("model_init_kwargs", {}), "dtype": dtype}
    else:
        recompute = own.get("gradient_checkpointing", True)
        model, tokenizer = FastLanguageModel.from_pretrained(
            str(asked.model), dtype=dtype, load_in_4bit=False, use_gradient_checkpointing=recompute, **through_unsloth
        )
        model = FastLanguageModel.get_peft_model(model, use_gradient_checkpointing=recompute, **LINEAR)
        given = {"model": model, "processing_class": tokenizer}
    config = SFTConfig(
        output_dir=str(asked.work),
        max_steps=asked.steps,
        per_device_train_batch_size=asked.batch,
        learning_rate=asked.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=1,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **{"bf16": False, **own},  # the weights have the type; its default would cast at every product too
    )
    trainer = SFTTrainer(args=config, train_dataset=work, **given)
    counts = [(len(r["input_ids"]), sum(x != -100 for x in r["labels"])) for r in trainer.train_dataset]
    trainer.add_callback(Steps(counts))
    names = ["torch", "transformers", "trl", "peft", "accelerate", "datasets"]
    names += [] if through_unsloth is None else ["unsloth", "unsloth_zoo"]
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    pace.ready(versions={n: importlib.metadata.version(n) for n in names}, trained_parameters=trained)
    trainer.train()
    pace.done()


if __name__ == "__main__":
    main()
