"""The optimizer of a run, and its learning rate at each update."""

import torch
from torch import nn

from .config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Give the optimizer of the parameters that train.

    Raises:
        ValueError: no parameter does.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("no parameter of the model trains: set requires_grad on those that should")
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(
        parameters, config.lr, betas=(config.momentum, 0.999), weight_decay=config.weight_decay
    )


def rate_at(config: TrainConfig, update: int) -> float:
    """Give the learning rate of an update, counted from 0.

    It rises linearly over ``warmup`` updates, and under ``decay="linear"`` falls from its full
    height at the first to 0 after the last; the smaller of the two counts.
    """
    rise = min(1.0, (update + 1) / config.warmup) if config.warmup else 1.0
    fall = 1.0 - update / config.total_updates if config.decay == "linear" else 1.0
    return config.lr * min(rise, fall)
