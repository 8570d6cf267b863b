"""mpiexec -n 4 python examples/heterogeneous.py FOLDER: subjects of papers by relational attention.

Papers have features; authors, who write on a subject, and institutions learn embeddings.
The file that it writes trains from the command line too: hpcgnn train FOLDER/papers.h5 --model rgat
"""

import sys

import numpy as np
import torch

import hpcgnn
from hpcgnn.models.inputs import TypedInput
from hpcgnn.nn import Linear, RGATConv
from hpcgnn.storage.write.graph_writer import GraphWriter


def write_graph(path, papers=600, authors=400, institutions=20):
    rng, counts = np.random.default_rng(0), [papers, authors, institutions]  # types 0, 1 and 2
    subject, own = rng.integers(0, 4, papers), rng.integers(0, 4, authors)
    paper, author = rng.integers(0, papers, 8 * papers), rng.integers(0, authors, 8 * papers)
    kept = (subject[paper] == own[author]) | (rng.random(len(paper)) < 0.05)
    wrote, cites = (papers + author[kept], paper[kept]), rng.integers(0, papers, (2, 2 * papers))
    staff = papers + np.arange(authors)
    employs = (papers + authors + staff % institutions, staff)
    ends = [np.stack(pair) for pair in (wrote, wrote[::-1], cites, employs)]  # relations 0 to 3
    relation = np.repeat(np.arange(4), [pair.shape[1] for pair in ends])
    source, target = np.concatenate(ends, axis=1)
    order, years = np.argsort(target, kind="stable"), rng.random((len(source), 1))
    nothing = np.zeros(authors + institutions, int)
    with GraphWriter(path, num_nodes=sum(counts)) as writer:
        degrees = np.bincount(target, minlength=sum(counts))
        writer.append_rows(degrees, source[order], relation=relation[order], edge_features=years)
        writer.append_types(np.repeat([0, 1, 2], counts))
        writer.append_typed_features(0, rng.normal(subject[:, None] == np.arange(8), 1))
        writer.append_labels(np.concatenate([subject, nothing - 1]))
        writer.append_split(np.concatenate([rng.integers(1, 4, papers), nothing]))


class Network(torch.nn.Module):
    def __init__(self, graph, width=32, heads=4):
        super().__init__()
        shape = {"num_relations": graph.num_relations, "heads": heads, "edge_dim": 1}
        self.inputs = TypedInput(graph, width, seed=0)
        self.first = RGATConv(width, width // heads, **shape)
        self.second = RGATConv(width, graph.num_classes, concat=False, **shape)
        self.own = Linear(width, graph.num_classes)

    def forward(self, graph):
        x = self.inputs(graph)
        x = x + self.first(graph, x).relu()
        return self.own(x) + self.second(graph, x)


def train(comm, folder, papers=600, epochs=30):
    path, part = f"{folder}/papers.h5", f"{folder}/papers.p{comm.size}.h5"
    if comm.rank == 0:
        write_graph(path, papers)
    hpcgnn.partition_graph(comm, path, method="streaming", out=part)
    graph = hpcgnn.load_partition(part, comm)
    torch.manual_seed(0)  # the same weights on every rank
    task = hpcgnn.tasks.find_task(graph)
    run = {"run_dir": f"{folder}/run", "optimizer": "adam", "lr": 0.01, "epochs": epochs}
    hpcgnn.Trainer(graph, Network(graph), task, **run).run()


if __name__ == "__main__":
    hpcgnn.run(lambda comm: train(comm, sys.argv[1]))
