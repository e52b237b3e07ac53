"""TRL's SFTTrainer with PEFT's LoRA to its end. Run by bench/tune_quality.py: MODEL ROWS WORK SETTINGS (JSON)."""

import importlib.metadata
import json
import sys
import time
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

model, rows, work, own = sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
epochs, seed = own.pop("epochs"), own.pop("seed")
lora = (
    {"r": own.pop("r"), "lora_alpha": own.pop("lora_alpha"), "target_modules": own.pop("targets")} if "r" in own else {}
)


def dialogue(row: dict[str, list[dict[str, str]]]) -> dict[str, list[dict[str, str]]]:
    return {
        "prompt": row["messages"][:-1],
        "completion": row["messages"][-1:],
    }


work.mkdir(parents=True)
data = load_dataset("json", data_files=rows, split="train", cache_dir=str(work / "cache"))
config = SFTConfig(
    output_dir=str(work),
    num_train_epochs=epochs,
    per_device_train_batch_size=8,
    seed=seed,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
    dataloader_pin_memory=False,
    model_init_kwargs={"dtype": "bfloat16"},
    gradient_checkpointing=False,
    **own,
)
trainer = SFTTrainer(
    model=model,
    args=config,
    train_dataset=data.map(dialogue, remove_columns=data.column_names),
    peft_config=LoraConfig(task_type="CAUSAL_LM", **lora),
    processing_class=AutoTokenizer.from_pretrained(model),
)
torch.set_num_threads(2)
began = time.perf_counter()
trainer.train()
seconds = time.perf_counter() - began
trainer.model.save_pretrained(work / "adapter")
versions = {n: importlib.metadata.version(n) for n in ("torch", "transformers", "trl", "peft")}
(work / "facts.json").write_text(json.dumps({"seconds": seconds, "epochs": epochs, "versions": versions}))
