"""mpiexec -n 4 python examples/mesh_regression.py FOLDER: learn a step of advection and diffusion,
with states on nodes and edges (Pfaff et al. 2021). Any number of ranks prints the same losses."""

import sys

import numpy as np
import torch
from scipy.spatial import Delaunay

import hpcgnn
from hpcgnn.sar.messages import edge_features
from hpcgnn.storage.write.graph_writer import GraphWriter


def write_mesh(path, side):
    points = np.argwhere(np.ones((side, side))) + np.random.default_rng(0).random((side**2, 2)) / 2
    pairs = Delaunay(points).simplices[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    target, source = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0).T
    vector = points[source] - points[target]
    length = np.linalg.norm(vector, axis=1)
    field = np.sin(points @ [0.7, 0.2]) + np.cos(points @ [-0.3, 0.5])
    inflow = 0.1 + np.maximum(-vector @ [1.0, 0.5], 0) / length  # upwind edges bring more
    change = np.bincount(target, (field[source] - field[target]) * inflow)
    with GraphWriter(path, num_nodes=len(points)) as writer:
        writer.append_rows(np.bincount(target), source, edge_features=np.c_[vector, length])
        writer.append_features(field[:, None])
        writer.append_labels(change)
        writer.append_split(np.arange(len(points)) % 3 + 1)  # to train, to validate, to test


def mlp(inputs, width):
    maps = torch.nn.Linear(inputs, width), torch.nn.ReLU(), torch.nn.Linear(width, width)
    return torch.nn.Sequential(*maps, torch.nn.LayerNorm(width))


class Process(hpcgnn.nn.EdgeMessagePassing):
    def __init__(self, width):
        super().__init__("sum")
        self.edge, self.node = mlp(3 * width, width), mlp(2 * width, width)

    def edge_update(self, e, x_src, x_dst, edge):
        return e + self.edge(torch.cat([e, x_src, x_dst], dim=1))

    def update(self, reduced, x):
        return x + self.node(torch.cat([x, reduced], dim=1))


class Network(torch.nn.Module):
    def __init__(self, width=32, steps=3):
        super().__init__()
        self.nodes, self.edges = mlp(1, width), mlp(3, width)
        self.steps = torch.nn.ModuleList(Process(width) for _ in range(steps))
        self.decode = torch.nn.Linear(width, 1)

    def forward(self, graph, x):
        x, e = self.nodes(x), self.edges(edge_features(graph))
        for step in self.steps:
            x, e = step(graph, x, e)
        return self.decode(x)


def train(comm, folder, side=30, epochs=100):
    mesh, part = f"{folder}/mesh.h5", f"{folder}/mesh.p{comm.size}.h5"
    if comm.rank == 0:
        write_mesh(mesh, side)
    hpcgnn.partition_graph(comm, mesh, method="streaming", out=part)
    graph = hpcgnn.load_partition(part, comm)
    torch.manual_seed(0)  # the same weights on every rank
    task = hpcgnn.tasks.Regression(num_outputs=1, metric="rmse")
    run = {"run_dir": f"{folder}/run", "optimizer": "adam", "lr": 0.001, "epochs": epochs}
    hpcgnn.Trainer(graph, Network(), task, **run).run()


if __name__ == "__main__":
    hpcgnn.run(lambda comm: train(comm, sys.argv[1]))
