"""mpiexec -n P python log_elsewhere.py GRAPH.pP.h5 [--resume]: numbers of epochs to W&B or MLflow.

They go to `wandb` or `mlflow`, if installed; without either they are printed. A
callback of a few lines does it, for any logger that takes a dictionary of numbers.
"""

import importlib.util
import sys

import hpcgnn
from hpcgnn.train.tensorboard import scalars


class Logged:
    """A callback that passes the numbers of each epoch on, on rank 0 only.

    Checkpoints keep the id of the run there, so that a resumed run continues its curves.
    """

    def __init__(self, settings):
        self.settings, self.id, self.log, self.end = settings, None, None, None

    def on_start(self, trainer):
        if trainer.comm.rank == 0:
            self.id, self.log, self.end = opened(str(trainer.run_dir), self.id, self.settings)

    def on_epoch(self, trainer, record):
        if self.log is not None:
            self.log(scalars(record), record["epoch"])

    def on_end(self, trainer):
        if self.end is not None:
            self.end()

    def state_dict(self):
        return {"id": self.id}

    def load_state_dict(self, state):
        self.id = state["id"]


def opened(name, known, settings):
    """Return the run's id, a function that logs `(numbers, step)`, and one that ends the run."""
    if importlib.util.find_spec("wandb"):
        import wandb

        run = wandb.init(project="hpcgnn", name=name, id=known, resume="allow", config=settings)
        return run.id, run.log, run.finish
    if importlib.util.find_spec("mlflow"):
        import mlflow

        run = mlflow.start_run(run_id=known, run_name=name)
        if known is None:
            mlflow.log_params(settings)
        return run.info.run_id, mlflow.log_metrics, mlflow.end_run
    return None, lambda numbers, step: print(f"step {step}: {numbers}"), lambda: None


def main(comm, path=None, run_dir="runs/logged", epochs=20, resume="--resume" in sys.argv):
    graph = hpcgnn.load_partition(path or sys.argv[1], comm)
    task = hpcgnn.tasks.find_task(graph)
    model = hpcgnn.nn.GCNConv(graph.features.shape[1], graph.num_classes)
    settings = {"lr": 0.05, "epochs": epochs}
    callbacks = [Logged(settings | {"ranks": comm.size})]
    hpcgnn.Trainer(
        graph, model, task, run_dir=run_dir, callbacks=callbacks, resume=resume, **settings
    ).run()


if __name__ == "__main__":
    hpcgnn.run(main)
