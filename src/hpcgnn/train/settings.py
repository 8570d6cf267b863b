"""Settings of training: its optimizer, its length, its checkpoints and its device."""

from __future__ import annotations

from dataclasses import dataclass

from hpcgnn.errors import InputError
from hpcgnn.models.settings import OWN
from hpcgnn.settings import HIGHEST, Section, defining, free, told
from hpcgnn.tasks.settings import METRICS


@dataclass(frozen=True)
class OptimiserSettings(Section):
    """Settings of the optimizer and the learning rate."""

    kind: str = defining(
        "adam", "optimizer", ("adam", "adamw", "sgd"), option="optimizer", others=OWN
    )
    lr: float = told(1e-2, "learning rate", least=0, most=1e6)
    weight_decay: float = told(0.0, "weight decay", least=0, most=1e6)
    schedule: str = told(
        "constant", "learning rate schedule", ("constant", "cosine", "step"), others=OWN
    )
    step_size: int = told(100, "epochs per step of the step schedule", least=1, most=10**9)
    gamma: float = told(0.5, "factor of the step schedule", least=0, most=1000)
    warmup: int = told(
        0, "epochs in which the learning rate rises to that of the schedule", least=0, most=10**9
    )
    clip_norm: float = told(
        0.0, "scale gradients down to this norm over all parameters; 0: never", least=0, most=1e12
    )
    ema: float = told(
        0.0, "decay of a moving average of the weights, used for scores; 0: none", share=True
    )
    param_groups: str = told(
        "", "other values for some parameters: `*.bias:weight_decay=0;inputs.*:lr=0.001`"
    )

    def check(self) -> None:
        patterns_of(self.param_groups)


def patterns_of(param_groups: str) -> list[tuple[str, dict[str, float]]]:
    """Return the patterns of names in `param_groups`, each with its values.

    Raises:
        InputError: the text can't be parsed.
    """
    found = []
    for part in filter(None, (part.strip() for part in param_groups.split(";"))):
        pattern, colon, values = part.rpartition(":")
        if not colon or not pattern:
            raise InputError("--param-groups takes PATTERN:lr=X,weight_decay=X;...", value=part)
        found.append((pattern.strip(), _numbers(values, part)))
    return found


def _numbers(text: str, part: str) -> dict[str, float]:
    found = {}
    for entry in text.split(","):
        name, _, value = (piece.strip() for piece in entry.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if name not in ("lr", "weight_decay") or not 0 <= number <= 1e6:
            raise InputError("--param-groups takes lr=X and weight_decay=X", value=part)
        found[name] = number
    return found


@dataclass(frozen=True)
class TrainingSettings(Section):
    """Settings of a run's data, length, evaluation and stopping."""

    epochs: int = free(100, "epochs", least=0, most=10**9)
    patience: int = free(
        0,
        "stop after this many epochs without a better validation score; 0: never",
        least=0,
        most=10**9,
    )
    eval_every: int = free(1, "epochs between evaluations", least=1, most=10**9)
    monitor: str = defining(
        "auto",
        "what --patience and the choice of the best epoch follow: a metric of the validation "
        "nodes, `valid_loss`, or `loss` of training; auto: the reported metric",
    )
    better: str = defining(
        "auto", "which values of --monitor are better", ("auto", "larger", "smaller")
    )
    metric: str = defining("auto", "reported metric", METRICS)
    split: int = defining(0, "which split of the graph file", least=0, most=HIGHEST)
    seed: int = defining(0, "seed of all random numbers", least=0, most=HIGHEST)
    method: str = free(
        "auto",
        "how a graph file is partitioned",
        ("auto", "parmetis", "kaminpar", "streaming", "random", "block"),
    )
    adversarial_steps: int = defining(
        0, "FLAG: ascent steps on the input features, 0 for none", least=0, most=1000
    )
    adversarial_size: float = defining(1e-3, "FLAG: step size", least=0, most=1e6)
    time_margin: float = free(
        60.0, "seconds before the time limit to stop, besides two epochs", least=0, most=1e9
    )


@dataclass(frozen=True)
class CheckpointSettings(Section):
    """How often checkpoints are written, and how many are kept."""

    every: int = free(
        10,
        "epochs between checkpoints; 0: only at the end",
        option="checkpoint_every",
        least=0,
        most=10**9,
    )
    keep: int = free(2, "checkpoints kept besides the best", least=1, most=10**9)
    must_succeed: bool = free(
        False, "end the run when a checkpoint can't be written", option="fail_on_checkpoint"
    )


@dataclass(frozen=True)
class DeviceSettings(Section):
    """The device and the precision of computation."""

    kind: str = free("auto", "device to compute on", ("auto", "cpu", "cuda"), option="device")
    precision: str = told(
        "fp32",
        "dense products in float32, TF32 or bfloat16; bfloat16 also rounds messages",
        ("fp32", "tf32", "bf16"),
    )
    keep_in: str = told(
        "fp32",
        "type of float32 rows that are kept for the backward pass",
        ("fp32", "bf16"),
    )
    gradient_sums: str = told(
        "mpi",
        "library that sums gradients over ranks; nccl: on the GPUs, if each rank has its own",
        ("mpi", "nccl"),
    )
    features_on: str = free(
        "device",
        "where dense features are kept; on the host they stream through the GPU",
        ("device", "host"),
    )
