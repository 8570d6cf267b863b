"""Which pairs of nodes have an edge? Some edges are held out, and found again among random pairs.

    hpcgnn convert edges.csv graph.h5 --features x.npy --symmetrise --link-split 0.8,0.1,0.1
    hpcgnn partition graph.h5 --parts 2 -o graph.p2.h5
    mpiexec -n 2 python link_prediction.py graph.p2.h5

The model gives a row per node; a pair's score is read off the rows of its two nodes, wherever they
lie. Edges of valid and test carry no message: the trainer takes them out of the graph.
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
    """A decoder of one's own: nodes whose rows lie near each other are linked."""

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
    # The probabilities of the edges held out, with the ids of both nodes of each.
    out = f"{run_dir}/links.csv"
    found = hpcgnn.predict(graph, run_dir, model, task=task, out=out, force=True)
    if comm.rank == 0:
        scores = ", ".join(f"{split} {score:.3f}" for split, score in found.scores.items())
        print(f"{found.metric}: {scores}; {found.count} pairs in {out}")


if __name__ == "__main__":
    hpcgnn.run(lambda comm: main(comm, sys.argv[1]))
