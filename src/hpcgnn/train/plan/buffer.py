"""Check that the halo buffer holds the widest row that a model sends."""

from __future__ import annotations

from hpcgnn.comm.ring import too_small
from hpcgnn.settings import parse_size
from hpcgnn.train.config import Config
from hpcgnn.train.plan.coefficients import SUMS
from hpcgnn.train.plan.estimate import Shape, first_cached, input_width, layers

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
    numbers = _widest_row(shape, config)
    least = 2 * streaming.prefetch * numbers * (2 if config.device.precision == "bf16" else 4)
    if size < least:
        raise too_small(size, numbers, least)


def _widest_row(shape: Shape, config: Config) -> int:
    """Return the numbers of the widest row, with the gradients that are returned for it."""
    model = config.model
    # Modes that keep remote rows for backward only return gradients then.
    both = config.streaming.mode == "sar" or model.kind in (*SUMS, "rgcn")
    widths = [max(one.sent, one.returned if both else 0) for one in layers(shape, config)]
    repeated = model.power if model.kind in _REPEATED else 1
    cached = input_width(shape, config) if first_cached(shape, config) else 0
    return max(cached, max(widths) // repeated)
