"""A task of your own: a plain object with three methods defines what is learned.

    hpcgnn generate sbm graph.h5 --nodes 2000 --degree 8 --classes 4 --features 16
    hpcgnn partition graph.h5 --parts 2 -o graph.p2.h5
    mpiexec -n 2 python own_task.py graph.p2.h5

The model learns the share of a node's in-neighbours of another class, by a quantile loss.
"""

import sys

import numpy as np
import torch

import hpcgnn
from hpcgnn import nn


class Mixing:
    """The targets are the nodes of a split; the loss is of the 0.8 quantile of their mixing."""

    metric, larger_is_better = "pinball", False

    def __init__(self, graph):
        # For this rank's nodes; remote neighbours' classes are exchanged over the ring.
        classes = torch.nn.functional.one_hot(graph.labels, graph.num_classes).float()
        shares = nn.SAGEConv(graph.num_classes, graph.num_classes, bias=False, root_weight=False)
        shares.lin_l.weight.data = torch.eye(graph.num_classes)
        with torch.no_grad():
            around = shares(graph, classes)
        self.mixing = 1 - around.gather(1, graph.labels[:, None])[:, 0]
        train = graph.comm.allreduce(int(graph.train_mask.sum()))
        self.count = max(train, 1)

    def targets(self, graph, split):
        masks = {"train": graph.train_mask, "valid": graph.valid_mask, "test": graph.test_mask}
        return torch.nonzero(masks[split]).flatten()

    def loss(self, graph, output, rows):
        """This rank's share: the sum over the ranks is the loss."""
        return self.pinball(output, rows).sum() / self.count

    def metrics(self, graph, output, rows, split):
        """The numbers are the same on all ranks, since the sums cover all of them."""
        sums = np.array([float(self.pinball(output, rows).sum()), len(rows)])
        total, count = graph.comm.allreduce(sums)
        return {"pinball": total / count if count else float("nan")}

    def pinball(self, output, rows):
        error = self.mixing[rows] - output[:, 0]
        return torch.maximum(0.8 * error, -0.2 * error)


class Net(torch.nn.Module):
    def __init__(self, inputs, hidden=16):
        super().__init__()
        self.first, self.second = nn.SAGEConv(inputs, hidden), nn.SAGEConv(hidden, 1)

    def forward(self, graph, x):
        return self.second(graph, torch.relu(self.first(graph, x)))


def main(comm, path, run_dir="runs/own_task", epochs=30):
    graph = hpcgnn.load_partition(path, comm)
    trainer = hpcgnn.Trainer(
        graph, Net(graph.features.shape[1]), Mixing(graph), run_dir=run_dir, epochs=epochs, lr=0.01
    )
    trainer.run()


if __name__ == "__main__":
    hpcgnn.run(lambda comm: main(comm, sys.argv[1]))
