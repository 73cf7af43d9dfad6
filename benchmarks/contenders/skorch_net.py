"""skorch, which gives PyTorch the face of scikit-learn; for tables of numbers."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from skorch import NeuralNetRegressor
from skorch.callbacks import LRScheduler

from benchmarks.contenders.plain import device, warmed
from benchmarks.tasks import Prepared
from kagglekit.optimizers import learning_rate


def run(folder: Path) -> dict[str, object]:
    """Train the case in `folder`; seconds in training and answering, and each member's score."""
    prepared, scores = Prepared(folder), []
    case = prepared.case
    warmed()
    began = time.monotonic()
    for member in prepared.members():
        steps = case.epochs * case.batches(len(member.train))
        schedule = LRScheduler(
            torch.optim.lr_scheduler.LambdaLR,
            lr_lambda=lambda step, steps=steps: learning_rate(step, steps, case.config),
            step_every="batch",
        )
        net = NeuralNetRegressor(
            prepared.model(member.seed), optimizer=torch.optim.AdamW, lr=case.lr,
            optimizer__weight_decay=0.01, optimizer__fused=True, max_epochs=case.epochs,
            batch_size=case.batch, iterator_train__shuffle=True, iterator_train__drop_last=True,
            train_split=None, verbose=0,
            device=device().type, callbacks=[schedule],
        )  # fmt: skip
        net.fit(prepared.inputs[member.train], prepared.targets[member.train])
        net.predict(prepared.test)
        scores.append(prepared.score(net.predict(prepared.inputs[member.valid]), member))
    return {"training": time.monotonic() - began, "scores": scores}
