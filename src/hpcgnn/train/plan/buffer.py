"""Check that the halo buffer holds the widest row that a model sends."""

from __future__ import annotations

from hpcgnn.comm.ring import too_small
from hpcgnn.settings import parse_size
from hpcgnn.train.config import Config
from hpcgnn.train.plan.coefficients import SUMS
from hpcgnn.train.plan.estimate import Layer, Shape, first_cached, input_width, layers

_REPEATED = ("sgc", "appnp", "dagnn")  # the traffic of their layers is that of `power` exchanges


def check_buffer(shape: Shape, config: Config) -> None:
    """Refuse what training on several ranks would, for a built-in model.

    Raises:
        InputError: messages of one row, in both directions, don't fit into `--halo-buffer`.
    """
    streaming = config.streaming
    if shape.ranks == 1 or streaming.mode == "oneshot":
        return
    size = parse_size(streaming.halo_buffer)
    numbers, number_bytes = _widest_row(shape, config)
    least = 2 * streaming.prefetch * numbers * number_bytes
    if size < least:
        raise too_small(size, numbers, least)


def _widest_row(shape: Shape, config: Config) -> tuple[int, int]:
    """Return the numbers of the widest row, with gradients returned for it, and the bytes of one.

    Constant features are exchanged once, in float32 whatever the precision.
    """
    model = config.model
    # Modes that keep remote rows for backward only return gradients then.
    both = config.streaming.mode == "sar" or model.kind in (*SUMS, "rgcn")
    found = layers(shape, config)
    rows = [_in_messages(one, config, last=one is found[-1]) for one in found]
    widths = [max(sent, returned if both else 0) for sent, returned in rows]
    repeated = model.power if model.kind in _REPEATED else 1
    cached = input_width(shape, config) if first_cached(shape, config) else 0
    number_bytes = 2 if config.device.precision == "bf16" else 4
    candidates = [(cached, 4), (max(widths) // repeated, number_bytes)]
    return max(candidates, key=lambda row: row[0] * row[1])


def _in_messages(layer: Layer, config: Config, *, last: bool) -> tuple[int, int]:
    """Return the layer's numbers sent and returned, as messages of the run's precision count them.

    In rows of 16-bit numbers, the scores of gat are float32, so that each counts twice.
    """
    model = config.model
    if model.kind != "gat" or config.device.precision != "bf16" or not layer.sent:
        return layer.sent, layer.returned
    heads = model.output_heads or model.heads if last and model.head == "conv" else model.heads
    odd = (layer.sent - heads) % 2
    return layer.sent + heads + odd, layer.returned + 3 * heads + odd
