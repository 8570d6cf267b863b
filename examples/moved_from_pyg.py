"""A script of PyTorch Geometric, on any number of ranks: mpiexec -n 2 python moved_from_pyg.py

Changed are imports, the data line and the trainer lines; `make_graph` and `Net` are as they were.
On one process it had 108 lines, 46 of them `main` and a ROC AUC; now it has 78, 20 in `main`.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

import hpcgnn
from hpcgnn.nn.pyg import GATConv, SAGEConv


def make_graph(nodes=3000, degree=10, features=32, seed=0):
    """Two communities, a third of the nodes in the first; with masks and original ids."""
    rng = np.random.default_rng(seed)
    label = (rng.random(nodes) > 1 / 3).astype(np.int64)
    src = rng.integers(0, nodes, nodes * degree)
    dst = rng.integers(0, nodes, nodes * degree)
    keep = (label[src] == label[dst]) | (rng.random(len(src)) < 0.3)
    edge_index = to_undirected(torch.from_numpy(np.stack([src[keep], dst[keep]])), num_nodes=nodes)
    x = rng.normal(size=(nodes, features)).astype(np.float32)
    x[:, :4] += 0.4 * label[:, None]
    draw = rng.random(nodes)
    return Data(
        x=torch.from_numpy(x),
        edge_index=edge_index,
        y=torch.from_numpy(label),
        train_mask=torch.from_numpy(draw < 0.6),
        val_mask=torch.from_numpy((draw >= 0.6) & (draw < 0.8)),
        test_mask=torch.from_numpy(draw >= 0.8),
        original_id=torch.from_numpy(rng.permutation(nodes) + 10**6),
    )


class Net(torch.nn.Module):
    def __init__(self, inputs, hidden, classes, heads=4, dropout=0.3):
        super().__init__()
        self.first = SAGEConv(inputs, hidden)
        self.norm = torch.nn.BatchNorm1d(hidden)
        self.second = GATConv(hidden, hidden // heads, heads=heads)
        self.out = torch.nn.Linear(2 * hidden, classes)
        self.dropout = dropout

    def forward(self, x, edge_index):
        a = F.relu(self.norm(self.first(x, edge_index)))
        a = F.dropout(a, self.dropout, self.training)
        b = F.elu(self.second(a, edge_index))
        return self.out(torch.cat([a, b], dim=1))


def main(comm, folder="."):
    torch.manual_seed(0)
    data = make_graph()
    if comm.rank == 0:
        hpcgnn.from_pyg(data, f"{folder}/graph.h5", ids="original_id", force=True)
    made = {"method": "streaming", "out": f"{folder}/parts.h5", "force": True}
    hpcgnn.partition_graph(comm, f"{folder}/graph.h5", **made)
    graph = hpcgnn.load_partition(f"{folder}/parts.h5", comm)
    model = hpcgnn.convert_norms(Net(data.num_features, 64, 2), graph)
    weight = 1 / torch.bincount(data.y[data.train_mask]).float()
    weight = weight / weight.mean()
    task = hpcgnn.tasks.MultiClass(2, metric="auc", class_weights=tuple(weight.tolist()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    hpcgnn.Trainer(
        graph, model, task, optimizer=optimizer, scheduler=schedule, run_dir=f"{folder}/run",
        epochs=100, patience=20, clip_norm=1.0,
    ).run()  # fmt: skip
    written = {"out": f"{folder}/predictions.csv", "force": True}
    hpcgnn.predict(graph, f"{folder}/run", model, task=task, **written)


if __name__ == "__main__":
    hpcgnn.run(main)
