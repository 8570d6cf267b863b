"""mpiexec -n P python log_elsewhere.py GRAPH.pP.h5: each epoch's numbers to W&B or MLflow.

Whichever of `wandb` and `mlflow` is installed gets them; without either they are printed. A
callback of a few lines does it, and anything that takes a dictionary of numbers will do.
"""

import importlib.util
import sys

import hpcgnn


class Logged:
    """A callback that hands the numbers of each epoch on; only rank 0 does."""

    def __init__(self, settings):
        self.settings, self.log, self.end = settings, None, None

    def on_start(self, trainer):
        if trainer.comm.rank == 0:
            self.log, self.end = opened(str(trainer.run_dir), self.settings)

    def on_epoch(self, trainer, record):
        if self.log is not None:
            numbers = {name: value for name, value in record.items() if type(value) in (int, float)}
            self.log(numbers, record["epoch"])

    def on_end(self, trainer):
        if self.end is not None:
            self.end()


def opened(name, settings):
    """A function that logs `(numbers, step)`, and one that ends the run."""
    if importlib.util.find_spec("wandb"):
        import wandb

        # The id lets a run that is resumed go on with its curves.
        run = wandb.init(
            project="hpcgnn", id=name.replace("/", "-"), resume="allow", config=settings
        )
        return lambda numbers, step: run.log(numbers, step=step), run.finish
    if importlib.util.find_spec("mlflow"):
        import mlflow

        mlflow.start_run(run_name=name)
        mlflow.log_params(settings)
        return lambda numbers, step: mlflow.log_metrics(numbers, step=step), mlflow.end_run
    return lambda numbers, step: print(f"step {step}: loss {numbers['loss']:.4f}"), lambda: None


def main(comm, path=None, run_dir="runs/logged", epochs=20):
    graph = hpcgnn.load_partition(path or sys.argv[1], comm)
    task = hpcgnn.tasks.find_task(graph)
    model = hpcgnn.nn.GCNConv(graph.features.shape[1], graph.num_classes)
    settings = {"lr": 0.05, "epochs": epochs}
    logged = Logged(settings | {"ranks": comm.size})
    hpcgnn.Trainer(graph, model, task, run_dir=run_dir, callbacks=[logged], **settings).run()


if __name__ == "__main__":
    hpcgnn.run(main)
