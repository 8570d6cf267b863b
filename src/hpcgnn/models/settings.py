"""Settings of the built-in models."""

from __future__ import annotations

from dataclasses import dataclass

from hpcgnn.errors import InputError
from hpcgnn.settings import Section, defining

_IGNORABLE = ("weights", "edge-features", "relations", "types", "features")
OWN = "own"  # a model that a Python program has made
KINDS = (
    "gcn",
    "sage",
    "gat",
    "gatv2",
    "transformer",
    "gin",
    "gine",
    "pna",
    "rgcn",
    "rgat",
    "deeper",
    "appnp",
    "sgc",
    "dagnn",
)
_WITH_HEADS = ("gat", "gatv2", "transformer", "rgat")
_SIMPLE = ("mean", "sum", "max", "min")
AGGREGATIONS: dict[str, tuple[str, ...]] = {
    "sage": _SIMPLE,
    "gin": _SIMPLE,
    "gine": _SIMPLE,
    "rgcn": ("mean", "sum"),
    "deeper": (*_SIMPLE, "softmax", "powermean"),
}


@dataclass(frozen=True)
class ModelSettings(Section):
    """The settings that define a model; with other values it is another one."""

    kind: str = defining(
        "sage",
        "layer type, or FILE.py:NAME, a class or function of your own, called as NAME(graph)",
        KINDS,
        option="model",
        others=rf"{OWN}|.+\.py:[A-Za-z_]\w*",
        shown_others="FILE.py:NAME",
    )
    model_args: str = defining("", "arguments for a model of your own: `hidden=64,layers=4`")
    layers: int = defining(3, "message-passing layers", least=1, most=1000)
    hidden: int = defining(256, "hidden width (over all heads)", least=1, most=1 << 16)
    aggr: str = defining(
        "auto",
        "how neighbours' rows are reduced in sage, gin, gine, rgcn and deeper; auto: as in PyTorch "
        "Geometric",
        ("auto", *_SIMPLE, "softmax", "powermean"),
    )
    heads: int = defining(4, "attention heads", least=1, most=1024)
    output_heads: int = defining(
        0,
        "attention heads of a last convolution, averaged; 0: the same as --heads",
        least=0,
        most=1024,
    )
    dropout: float = defining(0.5, "dropout probability between layers", share=True)
    input_dropout: float = defining(0.0, "dropout probability on the input features", share=True)
    attention_dropout: float = defining(0.0, "dropout probability on attention weights", share=True)
    norm: str = defining(
        "none", "normalisation between layers", ("none", "layer", "batch", "graph")
    )
    activation: str = defining("relu", "activation between layers", ("relu", "elu"))
    residual: bool = defining(False, "add a linear map of each layer's input to its output")
    block: str = defining(
        "auto",
        "residual blocks: norm and activation after each convolution (res) or before (res+); auto: "
        "res+ for deeper, else plain",
        ("auto", "plain", "res", "res+"),
    )
    head: str = defining("conv", "last layer: a convolution or a linear map", ("conv", "linear"))
    jumping: str = defining(
        "none", "jumping knowledge before a linear head", ("none", "cat", "max")
    )
    bases: int = defining(0, "R-GCN, R-GAT: number of bases, 0 for none", least=0, most=1 << 16)
    embedding: int = defining(
        0, "width of learned node embeddings where there are no features", least=0, most=1 << 16
    )
    ignore: str = defining(
        "none",
        "what the graph holds and the model should ignore: weights, edge-features, relations, "
        "types, features, separated by commas",
    )
    power: int = defining(10, "APPNP, SGC, DAGNN: propagation steps", least=1, most=10_000)
    teleport: float = defining(0.1, "APPNP: teleport probability", least=0, most=1)
    labels_as_input: float = defining(
        0.0, "share of training labels given as input each epoch", share=True
    )

    @property
    def own(self) -> bool:
        """Whether the model is the user's own."""
        return self.kind not in KINDS

    @property
    def blocks(self) -> str:
        """Kind of residual blocks: `plain`, `res` or `res+`."""
        if self.block != "auto":
            return self.block
        return "res+" if self.kind == "deeper" else "plain"

    def check(self) -> None:
        if self.model_args and not self.own:
            raise InputError("--model-args is for a --model of your own", value=self.model_args)
        allowed = AGGREGATIONS.get(self.kind, ())
        if self.aggr != "auto" and self.aggr not in allowed:
            choices = f" {', '.join(allowed)} or" if allowed else ""
            raise InputError(f"--aggr with --model {self.kind} is{choices} auto", value=self.aggr)
        if self.blocks != "plain" and (self.residual or self.jumping != "none"):
            given = "--residual" if self.residual else f"--jumping {self.jumping}"
            if self.block != "auto":
                raise InputError(f"{given} needs --block plain", value=self.block)
            raise InputError(
                f"{given} needs plain blocks, and those of --model {self.kind} are {self.blocks}: "
                "add --block plain"
            )
        if self.kind in _WITH_HEADS and self.hidden % self.heads:
            raise InputError(
                f"--hidden must be a multiple of --heads {self.heads}", value=self.hidden
            )
        if self.ignore != "none" and set(self.ignore.split(",")) - set(_IGNORABLE):
            raise InputError(
                f"--ignore takes {', '.join(_IGNORABLE)}, separated by commas", value=self.ignore
            )


def no_features() -> InputError:
    """Return the error that the nodes have no features and none are learned."""
    return InputError("the graph has no node features; give --embedding WIDTH to learn some")
