"""A model of your own with torch's optimizer and scheduler, on any number of ranks.

    hpcgnn generate sbm graph.h5 --nodes 2000 --degree 8 --classes 4 --features 16
    hpcgnn partition graph.h5 --parts 2 -o graph.p2.h5
    mpiexec -n 2 python own_model.py graph.p2.h5

It can be any `torch.nn.Module` whose `forward` takes the graph and the features of local nodes.
The same class trains on the command line, where `hidden` is an argument:

    mpiexec -n 2 hpcgnn train graph.p2.h5 --model own_model.py:Net --model-args hidden=32
"""

import sys

import torch

import hpcgnn
from hpcgnn import nn


class Net(torch.nn.Module):
    """Two kinds of layers side by side; `Dropout` draws the same masks on any number of ranks."""

    def __init__(self, graph, hidden=32):
        super().__init__()
        inputs, classes = graph.features.shape[1], graph.num_classes
        self.mean = nn.SAGEConv(inputs, hidden)
        self.attention = nn.GATConv(inputs, hidden // 4, heads=4)
        self.norm = nn.BatchNorm(2 * hidden)
        self.dropout = nn.Dropout(0.3, layer=1)
        self.out = nn.GCNConv(2 * hidden, classes)

    def forward(self, graph, x):
        x = torch.cat([self.mean(graph, x), self.attention(graph, x)], dim=1)
        x = self.dropout(graph, torch.relu(self.norm(graph, x)))
        return self.out(graph, x)


def say_rate(trainer, record):
    """A callback: what it adds to the record is written to metrics.jsonl."""
    record["lr"] = trainer.optimizer.param_groups[0]["lr"]


def main(comm, path, run_dir="runs/own_model", epochs=30):
    graph = hpcgnn.load_partition(path, comm)
    model = Net(graph)
    optimizer = torch.optim.AdamW(
        [
            {"params": model.norm.parameters(), "weight_decay": 0.0},
            {"params": [p for n, p in model.named_parameters() if not n.startswith("norm.")]},
        ],
        lr=0.01,
    )
    trainer = hpcgnn.Trainer(
        graph,
        model,
        hpcgnn.tasks.find_task(graph),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs),
        run_dir=run_dir,
        resume=True,  # from the newest checkpoint, if there is one
        epochs=epochs,
        patience=20,
        clip_norm=1.0,
        callbacks=[say_rate],
    )
    if trainer.run():  # else it was stopped, and the next start resumes
        hpcgnn.predict(graph, run_dir, model, out=f"{run_dir}/predictions.h5", force=True)


if __name__ == "__main__":
    hpcgnn.run(lambda comm: main(comm, sys.argv[1]))
