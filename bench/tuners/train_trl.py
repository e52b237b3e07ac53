"""TRL's SFTTrainer with PEFT's LoRA to its end, trial after trial. Run by bench/tune_quality.py: WORK (JSON).

WORK names `model`, `train` and `selection` (rows, already split), `folder`, `dtype`, `threads`, `evaluations` of a
trial and `trials`: settings of SFTConfig and LoraConfig with `name` and `epochs`. Of a trial the checkpoint with the
lowest loss on the selection rows is kept, as its `load_best_model_at_end` does.
"""

import importlib.metadata
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

BATCH = 8  # rows
asked: dict[str, Any] = json.loads(sys.argv[1])
folder = Path(asked["folder"])
torch.set_num_threads(asked["threads"])
cache = str(folder / "cache")
train, selection = (
    load_dataset("json", data_files=asked[side], split="train", cache_dir=cache) for side in ("train", "selection")
)
for trial in asked["trials"]:
    own = dict(trial)
    name, epochs = own.pop("name"), own.pop("epochs")
    lora = {"r": own.pop("r"), "lora_alpha": own.pop("lora_alpha"), "target_modules": own.pop("targets")}
    steps = max(1, round(epochs * len(train) / BATCH))
    warmup = round(own.pop("warmup") * steps)
    every = math.ceil(steps / asked["evaluations"])
    config = SFTConfig(
        output_dir=str(folder / name / "work"),
        max_steps=every * math.ceil(steps / every),  # so that the last step is evaluated too
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        warmup_steps=warmup,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        model_init_kwargs={"dtype": asked["dtype"]},
        bf16=asked["dtype"] == "bfloat16",
        gradient_checkpointing=False,
        max_length=None,
        **own,
    )
    trainer = SFTTrainer(
        model=asked["model"],
        args=config,
        train_dataset=train,
        eval_dataset=selection,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora),
        processing_class=AutoTokenizer.from_pretrained(asked["model"]),
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    trainer.model.save_pretrained(folder / name / "adapter")
    row = trainer.train_dataset[0]
    facts = {
        "seconds": seconds,
        "epochs": trainer.state.epoch,
        "best_step": trainer.state.best_global_step,
        "steps": trainer.state.global_step,
        "first_row": [len(row["input_ids"]), sum(label != -100 for label in row["labels"])],
        "versions": {n: importlib.metadata.version(n) for n in ("torch", "transformers", "trl", "peft")},
    }
    (folder / name / "facts.json").write_text(json.dumps(facts))
