"""mpiexec -n 4 python examples/heterogeneous.py FOLDER: subjects of papers by relational attention.

Papers have features, authors and institutions learn embeddings; an edge has a relation and a year.
The file that it writes trains from the command line too: hpcgnn train FOLDER/papers.h5 --model rgat
"""

import sys

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import hpcgnn
from hpcgnn.models.inputs import TypedInput
from hpcgnn.nn import Linear, RGATConv
from hpcgnn.partition.pipeline import partition_graph
from hpcgnn.storage.write.graph_writer import GraphWriter

PAPER, AUTHOR, INSTITUTION = range(3)
WRITES, WRITTEN_BY, CITES, EMPLOYS = range(4)


def write_graph(path, papers=600, authors=400, institutions=20, subjects=4):
    """Authors mostly write on their own subject, papers cite at random."""
    rng, size = np.random.default_rng(0), papers + authors + institutions
    subject, own = rng.integers(0, subjects, papers), rng.integers(0, subjects, authors)
    paper, author = rng.integers(0, papers, 8 * papers), rng.integers(0, authors, 8 * papers)
    kept = (subject[paper] == own[author]) | (rng.random(len(paper)) < 0.05)
    paper, author = paper[kept], papers + author[kept]
    ends = {
        WRITES: (author, paper),
        WRITTEN_BY: (paper, author),
        CITES: rng.integers(0, papers, (2, 2 * papers)),
        EMPLOYS: (
            papers + authors + np.arange(authors) % institutions,
            papers + np.arange(authors),
        ),
    }
    source, target = np.concatenate([np.stack(pair) for pair in ends.values()], axis=1)
    relation = np.repeat(list(ends), [len(pair[0]) for pair in ends.values()])
    order = np.argsort(target, kind="stable")
    years, nothing = rng.random((len(source), 1)), np.full(size - papers, -1)
    with GraphWriter(path, num_nodes=size) as writer:
        counts = np.bincount(target, minlength=size)
        writer.append_rows(counts, source[order], relation=relation[order], edge_features=years)
        writer.append_types(
            np.repeat([PAPER, AUTHOR, INSTITUTION], [papers, authors, institutions])
        )
        writer.append_typed_features(PAPER, rng.normal(subject[:, None] == np.arange(8), 1))
        writer.append_labels(np.concatenate([subject, nothing]))
        writer.append_split(np.concatenate([rng.integers(1, 4, papers), 0 * nothing]))


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


def train(comm, folder, epochs=30):
    """The loss of each epoch; at last the share of test papers whose subject is found."""
    path, part = f"{folder}/papers.h5", f"{folder}/papers.p{comm.size}.h5"
    if comm.rank == 0:
        write_graph(path)
    partition_graph(comm, path, method="streaming", out=part)
    graph = hpcgnn.load_partition(part, comm)
    torch.manual_seed(0)  # the same weights on every rank
    optimizer = torch.optim.Adam((model := Network(graph)).parameters(), lr=0.01)
    rows, count = graph.train_mask, comm.allreduce(int(graph.train_mask.sum()))
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = cross_entropy(model(graph)[rows], graph.labels[rows], reduction="sum") / count
        loss.backward()
        hpcgnn.sum_gradients(model, comm)
        optimizer.step()
        yield comm.allreduce(float(loss.detach()))
    found = (model(graph).argmax(dim=1) == graph.labels)[graph.test_mask]
    yield comm.allreduce(int(found.sum())) / comm.allreduce(len(found))


if __name__ == "__main__":
    hpcgnn.run(lambda comm: print(f"rank {comm.rank}:", *train(comm, sys.argv[1])))
