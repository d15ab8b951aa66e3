"""Before the first step: problems, reward and tokenizer checked; labels made where asked for."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from entropy_probe.hooks import evaluating
from entropy_probe.models.prompts import encode_prompts, stop_ids
from entropy_probe.models.unembedding import check_unembedding, unembedding
from entropy_probe.storage.files import replacing
from entropy_probe.tasks import Problem, Task

from .collecting import Source, seed_of
from .config import TrainConfig
from .distributed import Ranks
from .model_files import check_configuration
from .rewards import Reward, get_reward, needs_labels, parts_of, reward_name
from .rules import soft_overlong, total
from .running import decoder_inside
from .voting import label_problems, wrongly_labelled

LABELS = "labels.json"


def check_training(model, tokenizer, task, config: TrainConfig, reward: str | Reward) -> None:
    """Raise where training could not begin, or could not end well.

    A tokenizer needs no pad token: rows are padded on the right, and masked.

    Raises:
        ValueError: with what to do about it.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"expected a Hugging Face model to train, got {type(model).__name__}: pass the model "
            "inside the wrapper"
        )
    _check_weights(model)
    if not callable(getattr(task, "verify", None)):
        raise ValueError(
            f"task {getattr(task, 'name', task)!r} has no verifier: give it a method "
            "verify(problem, completion) that returns 1.0 where the answer is right"
        )
    if not any(stop_ids(model, tokenizer, config.stop)):
        raise ValueError(
            "neither the tokenizer nor the model's generation configuration has an end-of-text "
            "token, so that no completion could end: set tokenizer.eos_token, or pass stop"
        )
    if isinstance(reward, str):
        get_reward(reward, task=task, labels={})
    check_configuration(model)
    prompt = _check_prompts(model, tokenizer, training_problems(task, config))
    decoder_inside(model)
    with evaluating(model):
        ids = torch.tensor([prompt[:16]], device=model.device)
        check_unembedding(model, unembedding(model), ids)


def training_problems(task: Task, config: TrainConfig) -> list[Problem]:
    """Give the problems of a run.

    Raises:
        ValueError: fewer than a batch needs.
    """
    problems = task.problems(config.problems, split="train", seed=config.seed)
    if len(problems) < config.prompts:
        raise ValueError(
            f"task {task.name!r} gave {len(problems)} problems to train on, fewer than the "
            f"{config.prompts} prompts of a batch: take smaller batches"
        )
    return problems


def make_source(
    model,
    tokenizer,
    task: Task,
    reward: str | Reward,
    config: TrainConfig,
    ranks: Ranks,
    out: Path | None,
) -> Source:
    """Give what rollouts are made of; labels are made by the model as it is now, once a run.

    Args:
        model: the policy before training, or later if the run's labels are on disk.
        tokenizer: its tokenizer.
        task: problems and verifier.
        reward: a reward, or the name of one.
        config: how to train.
        ranks: the processes, which share the work.
        out: the run's folder, where labels are kept.
    """
    training = problems = training_problems(task, config)
    if isinstance(reward, str):
        labels = None
        if needs_labels(reward):
            labels = _labels(model, tokenizer, task, problems, config, ranks, out)
            problems = [problem for problem in problems if problem.id in labels]
            if not problems:
                raise ValueError(
                    f"no sample of {len(training)} problems gives an answer, so there is no "
                    f"majority for reward {reward!r} to compare with: take more --max-new-tokens, "
                    "easier problems, or a reward without labels"
                )
            if "incorrect" in parts_of(reward):
                problems = wrongly_labelled(task, problems, labels)
        reward = get_reward(reward, task=task, labels=labels)
    if config.overlong == "punish":
        reward = total(reward, soft_overlong(config.max_new_tokens, config.overlong_cache))
    return Source(tokenizer, task, problems, reward, config, ranks)


def name_of(reward: str | Reward) -> str:
    """Give what logs call a reward."""
    return reward if isinstance(reward, str) else reward_name(reward)


def _labels(
    model,
    tokenizer,
    task: Task,
    problems: Sequence[Problem],
    config: TrainConfig,
    ranks: Ranks,
    out: Path | None,
) -> dict[str, str]:
    """Read the majority's answers from the run's folder, or make them, each process its share."""
    file = None if out is None else out / LABELS
    if file is not None and ranks.all(file.exists()):
        return json.loads(file.read_text())
    share = ranks.share(len(problems))
    mine, made = [problems[i] for i in share], {}
    if mine:
        made = label_problems(
            model, tokenizer, task, mine, n=config.label_samples, stop=config.stop,
            max_new_tokens=config.max_new_tokens, temperature=config.temperature,
            seed=seed_of("labels", config.seed), batch_size=config.batch_size,
            offset=share.start,
        )  # fmt: skip
    labels = {key: answer for part in ranks.objects(made) for key, answer in part.items()}
    if file is not None and ranks.main:
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(labels, indent=1))
    return labels


def _check_weights(model) -> None:
    """Raise where updates would be lost in the rounding of the weights."""
    trained = [(name, p.dtype) for name, p in model.named_parameters() if p.requires_grad]
    rough = [(name, dtype) for name, dtype in trained if dtype.itemsize < 4]
    if rough:
        name, dtype = rough[0]
        raise ValueError(
            f"expected the parameters that train in float32, got {len(rough)} of {len(trained)} in "
            f"{str(dtype).removeprefix('torch.')}, {name} the first, which rounds small updates "
            'away: load the model with dtype="float32" (--dtype float32), and pass bf16=True '
            "(--bf16) for fast matrix products"
        )


def _check_prompts(model, tokenizer, problems: Sequence[Problem]) -> list[int]:
    """Raise where a prompt leaves no room to answer; give the tokens of the longest."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    encoded = encode_prompts(tokenizer, [problem.prompt for problem in problems])
    longest = max(range(len(encoded)), key=lambda i: len(encoded[i]))
    if context is not None and len(encoded[longest]) >= context:
        raise ValueError(
            f"the prompt of problem {problems[longest].id!r} has {len(encoded[longest])} tokens, "
            f"but the model's context is {context}: take shorter problems"
        )
    return encoded[longest]
