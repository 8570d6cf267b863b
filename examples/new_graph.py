"""A model trained on one graph predicts another: new nodes, another size, no labels.

    hpcgnn generate sbm old.h5 --nodes 2000 --degree 8 --classes 4 --features 16
    hpcgnn convert new_edges.csv new.h5 --features new_x.npy
    hpcgnn partition old.h5 --parts 2 -o old.p2.h5
    hpcgnn partition new.h5 --parts 2 -o new.p2.h5
    mpiexec -n 2 python new_graph.py old.p2.h5 new.p2.h5

On the command line: `hpcgnn predict new.p2.h5 runs/old --any-graph -o new.parquet`. The new graph
needs the model's inputs, here features of the same width; its number of parts may differ.
"""

import sys

import torch

import hpcgnn
from hpcgnn import nn, tasks


class Net(torch.nn.Module):
    def __init__(self, inputs, outputs, hidden=32):
        super().__init__()
        self.first, self.second = nn.SAGEConv(inputs, hidden), nn.SAGEConv(hidden, outputs)

    def forward(self, graph, x):
        return self.second(graph, torch.relu(self.first(graph, x)))


def main(comm, old, new, run_dir="runs/old", epochs=30):
    graph = hpcgnn.load_partition(old, comm)
    task = tasks.MultiClass(graph.num_classes, "macro_f1", class_weights=(1.0,) * graph.num_classes)
    torch.manual_seed(0)  # the same first weights on all ranks
    model = Net(graph.features.shape[1], task.num_outputs)
    hpcgnn.Trainer(graph, model, task, run_dir=run_dir, epochs=epochs, lr=0.01).run()

    other = hpcgnn.load_partition(new, comm)
    found = hpcgnn.predict(
        other, run_dir, model, task=task, any_graph=True, out=f"{run_dir}/new.csv", force=True
    )
    # This rank's rows; the file has those of all ranks, by the nodes' original ids.
    classes = torch.bincount(torch.from_numpy(found.rows["classes"]), minlength=task.num_outputs)
    counts = comm.allreduce(classes)
    if comm.rank == 0:
        print(f"{found.count} new nodes, by class: {counts.tolist()}")


if __name__ == "__main__":
    hpcgnn.run(lambda comm: main(comm, sys.argv[1], sys.argv[2]))
