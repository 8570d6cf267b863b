"""Which pairs of nodes have an edge? Some edges are held out and ranked among random pairs.

    hpcgnn convert edges.csv graph.h5 --features x.npy --symmetrise --link-split 0.8,0.1,0.1
    hpcgnn partition graph.h5 --parts 2 -o graph.p2.h5
    mpiexec -n 2 python link_prediction.py graph.p2.h5

The model gives a row per node; a pair's score is computed from its nodes' rows, on any ranks.
Validation and test edges carry no messages: the trainer removes them from the graph.
"""

import sys

import torch

import hpcgnn
from hpcgnn import nn, tasks


class Encoder(torch.nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.first, self.second = nn.SAGEConv(inputs, 32), nn.SAGEConv(32, width)

    def forward(self, graph, x):
        return self.second(graph, torch.relu(self.first(graph, x)))


class Distance(torch.nn.Module):
    """A decoder of your own: nodes with similar rows are linked."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.ones(1))

    def forward(self, x_src, x_dst):
        return self.bias - (x_src - x_dst).square().sum(dim=1, keepdim=True)


def main(comm, path, run_dir="runs/links", epochs=30):
    graph = hpcgnn.load_partition(path, comm)
    task = tasks.LinkPrediction(16, Distance(), metric="mrr", negatives=2, ranked_against=50)
    torch.manual_seed(0)  # the same first weights on all ranks
    model = Encoder(graph.features.shape[1], 16)
    trainer = hpcgnn.Trainer(graph, model, task, run_dir=run_dir, epochs=epochs, lr=0.01)
    trainer.run()
    # The probabilities of the held-out edges, with the ids of both nodes of each.
    out = f"{run_dir}/links.csv"
    found = hpcgnn.predict(graph, run_dir, model, task=task, out=out, force=True)
    if comm.rank == 0:
        scores = ", ".join(f"{split} {score:.3f}" for split, score in found.scores.items())
        print(f"{found.metric}: {scores}; {found.count} pairs in {out}")


if __name__ == "__main__":
    hpcgnn.run(lambda comm: main(comm, sys.argv[1]))
