"""One process, as in a notebook: no mpiexec, and graph.h5 itself instead of a partition.

    hpcgnn generate sbm graph.h5 --nodes 2000 --degree 8 --classes 4 --features 16
    python single_process.py graph.h5

Each `# %%` begins a cell. The code also runs on many ranks: then only `load_partition`
takes a partition file and a communicator.
"""

# %% The graph
import sys
import tempfile

import torch

import hpcgnn

graph = hpcgnn.load_partition(sys.argv[1])
print(f"{graph.num_nodes} nodes, {graph.num_edges} edges, {graph.num_classes} classes")


# %% A model
class Net(torch.nn.Module):
    def __init__(self, inputs, hidden, classes):
        super().__init__()
        self.first = hpcgnn.nn.GATv2Conv(inputs, hidden, heads=2, concat=False)
        self.second = hpcgnn.nn.SAGEConv(hidden, classes)

    def forward(self, graph, x):
        return self.second(graph, torch.relu(self.first(graph, x)))


# %% Training
run_dir = tempfile.mkdtemp()
model = Net(graph.features.shape[1], 16, graph.num_classes)
task = hpcgnn.tasks.find_task(graph)
trainer = hpcgnn.Trainer(graph, model, task, run_dir=run_dir, epochs=20, lr=0.01, ema=0.9)
trainer.run()

# %% Results
print(f"accuracy: {trainer.scores['test']['accuracy']:.3f}")
found = hpcgnn.predict(graph, run_dir, model)
print(found.rows["classes"][:10], found.rows["probabilities"].shape)

# %% By hand, without the loop of `Trainer`
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for epoch in range(1, 4):
    graph.set_epoch(epoch)
    rows = task.targets(graph, "train")
    optimizer.zero_grad()
    loss = task.loss(graph, model(graph, graph.features)[rows], rows)
    loss.backward()
    hpcgnn.sum_gradients(model)
    optimizer.step()
    print(f"epoch {epoch} loss {float(loss.detach()):.4f}")
