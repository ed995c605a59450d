"""Train a small language model with the Trainer of Hugging Face and a learned optimizer.

python examples/use_in_hugging_face.py

Two things are to know. The Trainer's own schedule falls to zero; a learned optimizer has its own, so hand over one that is constant. And
the Trainer does not hand over the loss: rules that need it, such as VeLO, want a loop of your own, Accelerate or Lightning.
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from lopt.tasks.data.text import text
from lopt.torch import LearnedOptimizer


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description="Train with the Trainer of Hugging Face and a learned optimizer.")
    parser.add_argument("--rule", default="general-2", help="name or path of a saved optimizer")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()

    torch.manual_seed(0)
    data = text("prose", 32)
    windows = [torch.from_numpy(np.array(x, np.int64)) for x in (data.train.inputs, data.test.inputs)]
    train, test = ([{"input_ids": x, "labels": x} for x in rows] for rows in (windows[0], windows[1][:256]))
    config = GPT2Config(
        vocab_size=data.classes, n_positions=32, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)

    optimizer = LearnedOptimizer(model.parameters(), args.rule, horizon=args.steps)
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=args.steps,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=64,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=train,  # pyright: ignore[reportArgumentType]
            eval_dataset=test,  # pyright: ignore[reportArgumentType]
            optimizers=(optimizer, constant),
        )
        print(f"test loss before {trainer.evaluate()['eval_loss']:.4f}")
        trainer.train()
        optimizer.eval()  # the model now holds what to evaluate and save
        print(f"test loss after {args.steps} steps {trainer.evaluate()['eval_loss']:.4f}")


if __name__ == "__main__":
    main()
