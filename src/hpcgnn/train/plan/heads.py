"""Whether gat layers compute their heads together, and what the widest layer keeps."""

from __future__ import annotations

from hpcgnn.graph.execution import is_wide
from hpcgnn.sar.gat import heads_apart
from hpcgnn.sar.gat_heads import one_at_a_time
from hpcgnn.train.config import Config


def come_apart(nodes: float, config: Config) -> bool:
    """Return whether hidden layers compute gradients one head at a time.

    Args:
        nodes: average number of nodes per rank.
    """
    model = config.model
    fits = model.kind == "gat" and config.streaming.mode == "sar" and config.device.kind != "cuda"
    fits = fits and config.device.keep_in == "bf16" and not config.streaming.recompute
    return fits and heads_apart(nodes, model.heads, model.hidden // model.heads)


def come_alone(config: Config, heads: int, wide: int, inputs: int) -> bool:
    """Return whether the last layer computes one head at a time; `wide`: outputs of all heads."""
    last = config.model.head == "conv" and wide % heads == 0
    mode = config.streaming.mode
    return last and one_at_a_time(mode, heads=heads, channels=wide // heads, inputs=inputs)


def keep_wide(config: Config, outputs: int) -> bool:
    """Return whether the last hidden layer keeps its product beside the last layer's `outputs`."""
    model, streaming = config.model, config.streaming
    plain = model.blocks == "plain" and model.norm == model.jumping == "none"
    plain = plain and model.activation == "relu" and not model.residual and model.layers > 1
    keeps = model.kind == "gat" and model.head == "conv" and streaming.mode == "sar"
    keeps = keeps and not streaming.recompute and config.device.keep_in != "bf16"
    return keeps and plain and is_wide(model.hidden, outputs)
