"""The training loop over all ranks, from the start or from the last checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from hpcgnn.comm.agreement import agreed
from hpcgnn.display import SILENT, Display
from hpcgnn.errors import HpcgnnError, InputError, NumericalError, say, warn
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.kernels.seal import Seal
from hpcgnn.models.build import Model
from hpcgnn.models.demands import content_of
from hpcgnn.models.unread import note_on_layers
from hpcgnn.nn.buckets import GradientSums
from hpcgnn.nn.linear import is_sharded
from hpcgnn.system import now
from hpcgnn.tasks.task import SPLITS, Task, as_task, split_mask
from hpcgnn.train import ending
from hpcgnn.train.arguments import (
    check_given,
    check_options,
    check_start,
    config_of_program,
    shares_of,
)
from hpcgnn.train.callbacks import Callbacks
from hpcgnn.train.calls import BuiltInCall, ModelCall
from hpcgnn.train.checkpoint.file import Checkpoint
from hpcgnn.train.checkpoint.resume import check_task, usable
from hpcgnn.train.checkpoint.state import (
    capture,
    restore_model,
    restore_optimizer,
    restored_average,
    restored_rows,
)
from hpcgnn.train.diagnosis import first_gradient
from hpcgnn.train.layer_rehearsal import rehearse_layers
from hpcgnn.train.learned import Learned
from hpcgnn.train.optimisation import Attack, Average, check_rows, clip_gradients, made_optimizer
from hpcgnn.train.passes import Passes
from hpcgnn.train.plan.refusal import explained
from hpcgnn.train.rate import Scheduler, WarmUp, made_rate
from hpcgnn.train.run import Run
from hpcgnn.train.run_directory import held, note_end, write_config
from hpcgnn.train.scores import Monitor, Progress, Scores, checked_rows, rows_by_split, score
from hpcgnn.train.stop import StopRequest, TimeLimit
from hpcgnn.train.telemetry import Costs, Counters, Profile, Reporter, Stopwatch, over_ranks

Losses = Callable[["Trainer", int], Iterable[Tensor]]


class Trainer:
    """Trains a model on a partitioned graph: any `torch.nn.Module`, any task, any optimizer.

    All ranks construct it with the same arguments; all take rank 0's initial weights.

    Args:
        graph: this rank's part.
        model: called as `model(graph, x)` with the graph's features, as `model(graph)`, or as
            PyTorch Geometric's `model(x, edge_index)`, see `calls.ModelCall`. Returns a row per
            local node. Moved to the graph's device.
        task: what is learned, see `tasks.Task`; any object with `targets`, `loss`, `metrics`,
            `metric` and `larger_is_better` is accepted.
        optimizer: a torch optimizer, a function that makes one from the parameters, or a name
            (`adam`, `adamw`, `sgd`, with settings lr and weight_decay).
        scheduler: one of `torch.optim.lr_scheduler`, or a function that makes one from the
            optimizer; steps once per epoch, `ReduceLROnPlateau` with the monitored value.
        run_dir: folder for metrics.jsonl, config.json and checkpoints/; made by rank 0.
        callbacks: functions or objects, see `Callbacks`.
        losses: `losses(trainer, epoch)` yields this rank's shares of several losses, whose
            gradients are summed; the backward pass of each runs before the next one is requested.
            By default, the task's loss alone.
        resume: continue from the newest intact checkpoint, if there is one.
        stop: signals received so far and from now on; None: those that arrive during `run`.
        show: what is printed, see `Reporter`; display: shows the progress.
        opened: the run, if the command has opened it; None: opened here, with `settings`.
        settings: as options of `hpcgnn train`: epochs, patience, monitor, better, eval_every,
            checkpoint_every, keep, clip_norm, warmup, ema, seed, precision and so on.

    Attributes:
        epoch: number of epochs completed.
        scores: results of the latest evaluation, by split and metric.

    Raises:
        InputError: graph, model, task and settings, or a checkpoint to resume, are incompatible.
    """

    def __init__(
        self,
        graph: PartitionedGraph,
        model: torch.nn.Module,
        task: Any,
        *,
        optimizer: Optimizer | Callable[[Any], Optimizer] | str | None = None,
        scheduler: Scheduler | Callable[[Optimizer], Scheduler] | None = None,
        run_dir: str | Path = "runs/own",
        callbacks: Sequence[Any] = (),
        losses: Losses | None = None,
        resume: bool = False,
        stop: StopRequest | None = None,
        show: str = "lines",
        display: Display = SILENT,
        opened: Run | None = None,
        **settings: Any,
    ) -> None:
        check_given(graph, model, run_dir, losses)
        check_options(resume=resume, stop=stop, show=show, display=display, opened=opened)
        self.stop, self.losses, self.callbacks = stop, losses, Callbacks(callbacks)
        self.display = display
        self._asked_to_stop = ""
        self.comm, self.device = graph.comm, graph.node_ids.device
        self.task: Task = as_task(task)
        self.of_program = opened is None
        with ExitStack() as directory:
            if opened is None:
                config = config_of_program(
                    graph, settings, optimizer=optimizer, scheduler=scheduler
                )
                seeded = replace(graph.execution, seed=config.training.seed)
                graph = replace(graph, execution=seeded)
                directory.enter_context(held(Path(run_dir), self.comm, fresh=not resume))
                opened = Run.open(Path(run_dir), graph, config, resume=resume)
            self.graph = self.task.prepare(graph)
            self.config, self.run_dir = opened.config, opened.directory
            self.store, self._model_file = opened.store, opened.model_file
            self.reporter = Reporter(self.config.training.epochs, self.task.metric, show)
            self._set_up(model, optimizer, scheduler, opened.found)
            self._directory = directory.pop_all()

    def _set_up(
        self,
        model: torch.nn.Module,
        optimizer: Optimizer | Callable[[Any], Optimizer] | str | None,
        scheduler: Scheduler | Callable[[Optimizer], Scheduler] | None,
        found: tuple[Path, Checkpoint] | None,
    ) -> None:
        graph, config = self.graph, self.config
        self.rows = rows_by_split(self.task, graph, own_losses=self.losses is not None)
        self._masks = Seal({f"{split}_mask": split_mask(graph, split) for split in SPLITS})
        self.monitor = Monitor.of(config.training, self.task)
        self.validated = self._is_validated()
        self.model = model
        self.learned = Learned(model, self.task.module)
        self.learned.to(self.device)
        self.learned.check(self.comm)
        self._content = content_of(graph)
        self._note_unread()
        self.parameters = self.learned.parameters()
        self.replicated = [p for p in self.parameters if not is_sharded(p)]
        self.sums = GradientSums(self.parameters, self.comm, config.device.gradient_sums)
        self.call = self._made_call()
        if self.of_program or not isinstance(model, Model):  # `train` has rehearsed its own models
            rehearse_layers(model, graph, self.call.precision)
        self.optimizer = made_optimizer(optimizer, self.learned, config, self.comm)
        by_settings = optimizer is None or isinstance(optimizer, str)
        self.rate = made_rate(self.optimizer, scheduler, config, by_settings=by_settings)
        self.warmup = WarmUp(self.optimizer, config.optimiser.warmup)
        decay = config.optimiser.ema
        self.average = Average(self.learned, decay) if decay else None
        self.progress = Progress(larger=self.monitor.larger)
        self.scores: Scores = {}
        self.epoch = self.start = 0
        self.resumed: Path | None = None  # the checkpoint, until its state has been used
        if found is not None:
            self._restore(*found)
        elif self.learned.take_from_first(self.comm) and self.comm.rank == 0:
            say("note: the ranks had different weights: all start with those of rank 0")
        self.saving, self.costs = Stopwatch(), Costs({}, {})
        self.journal, self.rank_journal = ending.open_journals(self)
        if self.journal is not None:
            self.store.before_writing = self.journal.sync

    def _note_unread(self) -> None:
        """Name the graph's data that a user's model does not read."""
        if isinstance(self.model, Model):
            return  # `train` names it, with the option that hides the note
        note = note_on_layers(self._content, self.model)
        if note and self.comm.rank == 0:
            say(note)

    def _made_call(self) -> ModelCall:
        if isinstance(self.model, Model):
            return BuiltInCall(self.model, self.graph, self.config, self.rows["train"])
        if self.config.training.adversarial_steps:
            raise InputError("--adversarial-steps is for built-in models")
        device = self.config.device
        return ModelCall(self.model, self.graph, device.precision, device.keep_in)

    def _is_validated(self) -> bool:
        """Return whether validation gives a score; if it doesn't, refuse patience."""
        patience = self.config.training.patience
        if self.monitor.is_defined(self.graph, self.task):
            return True
        if patience:
            raise InputError(
                f"--patience {patience} needs validation nodes whose {self.monitor.name} is "
                "defined, and this split has none: leave it out, or choose another --split"
            )
        if self.comm.rank == 0:
            warn(f"hpcgnn: note: {ending.NO_VALIDATION}: no best.h5 is kept")
        return False

    @property
    def begins(self) -> bool:
        """Whether `run` will train with the present settings, or save a run's initial state."""
        return self.start == 0 or not self.ended

    @property
    def ended(self) -> bool:
        """Whether training is complete: by the number of epochs, or by patience."""
        training = self.config.training
        return self.epoch >= training.epochs or self.progress.ran_out(training.patience)

    def request_stop(self, reason: str) -> None:
        """Stop after this epoch, with a checkpoint; a request on one rank is enough."""
        self._asked_to_stop = self._asked_to_stop or reason

    def run(self, profile: Profile | int = 0) -> bool:
        """Train to the end or to an agreed stop; return whether the end was reached.

        Args:
            profile: number of epochs whose timeline is written to `run_dir`/profile.

        Raises:
            InputError: gradients are switched off where it is called, or it has run before.
            OutOfMemoryError: with what was asked for, and how many ranks would do.
        """
        check_start(self.store)
        if self.of_program and self.begins:
            write_config(self.run_dir, self.comm, self.config)
        try:
            with explained(self.graph, self.config, self.device):
                if isinstance(profile, Profile):
                    return self._run(profile)
                with Profile(self.run_dir / "profile", self.comm.rank, profile) as timeline:
                    return self._run(timeline)
        except HpcgnnError as error:
            if self.comm.rank == 0:
                note_end(self.run_dir, f"failed: {error}")
            raise
        finally:
            self._directory.close()

    def _run(self, profile: Profile) -> bool:
        limit, longest, finished = TimeLimit(), 0.0, True
        with ExitStack() as signals:
            request = self.stop or signals.enter_context(StopRequest())
            self.callbacks.start(self)
            epochs = signals.enter_context(ending.epochs_shown(self))
            while not self.ended:
                start = time.perf_counter()
                record = self._epoch(self.epoch + 1)
                self.epoch += 1
                profile.step()
                self._take_note(record)
                epochs.advance()
                longest = max(longest, time.perf_counter() - start)
                margin = self.config.training.time_margin + 2 * longest
                reason = request.reason or self._asked_to_stop
                if self.comm.rank == 0 and limit.seconds_left() < margin:
                    reason = reason or "the time limit"
                finished = not self._stops(reason) or self.ended
                if not finished:
                    break
                every = self.config.checkpoints.every
                if not self.ended and every and self.epoch % every == 0:
                    self._save()
            if self.epoch > self.start or self.start == 0:
                self._save()
            self.store.finish()
            self.callbacks.end(self)
            ending.say_end(self, finished)
        ending.check_failure(self, ended=finished)
        self.store.close()
        return finished

    def _epoch(self, epoch: int) -> dict[str, Any]:
        watch, before = Stopwatch(), Counters.of(self.graph.ring)
        changed = self._masks.changed()
        if changed:
            raise InputError(
                f"graph.{changed} was changed in place after the Trainer was made: make another"
            )
        self.graph.set_epoch(epoch)
        with watch.phase("epoch"), self.comm.at(f"epoch {epoch}"):
            found: dict[str, Any] = {"epoch": epoch, "loss": self._step(epoch, watch)}
            found |= dict.fromkeys(SPLITS)
            if self._evaluates(epoch):
                with watch.phase("evaluate"), self.comm.at("evaluation"):
                    found |= self._evaluated()
        seconds = watch.named("epoch", "forward", "backward", "reduce", "evaluate")
        self.costs = over_ranks(self.comm, self.graph.ring, before, seconds, self.device)
        saving, self.saving = self.saving, Stopwatch()
        return {
            **found,
            "time": now(),
            "lr": self.optimizer.param_groups[0]["lr"],
            **seconds,
            **saving.named("checkpoint"),
            **self.costs.spread,
        }

    def _step(self, epoch: int, watch: Stopwatch) -> float:
        self.rate.begin(epoch)
        self.learned.train()
        for parameter in self.parameters:
            parameter.grad = None
        first = epoch == self.start + 1
        fail = partial(self._not_finite, epoch)
        rows = self.rows["train"]
        passes = Passes(self.graph, self.task, self.call, rows, watch, first, fail)
        with self.call.random_numbers(epoch, self.config.training.seed):
            if self.config.training.adversarial_steps and isinstance(self.model, Model):
                total = passes.adversarial(Attack(self.model, self.graph, self.config))
            elif self.losses is not None:
                total = passes.several(shares_of(self.losses(self, epoch)))
            else:
                with self.sums.overlapping():
                    total = passes.one()
        with watch.phase("backward"):
            if first and not isinstance(self.model, Model):
                self.learned.check_complete(self.parameters)
                self.learned.note_unused(self.comm)
            with watch.phase("reduce"):
                self._sum_gradients(epoch)
            if self.config.optimiser.clip_norm:
                clip_gradients(self.parameters, self.config.optimiser.clip_norm, self.comm)
        with usable(self.resumed):
            self.warmup.step(epoch)
        if first:
            with agreed(self.comm, "the optimizer's state"):
                check_rows(self.optimizer)
        if self.average is not None:
            self.average.update()
        return total

    def output(self) -> Tensor:
        """Return the model's output for all local nodes, in its present mode; for `losses`."""
        return self.call.output()

    def loss(self, output: Tensor) -> Tensor:
        """Return this rank's share of the task's loss for such an output; collective."""
        return self.task.loss(self.graph, output[self.rows["train"]], self.rows["train"])

    def _sum_gradients(self, epoch: int) -> None:
        """Sum the gradients of replicated parameters over the ranks."""
        if not self.sums.finish():
            place = first_gradient(self.graph, self.learned.named_parameters())
            self._not_finite(epoch, "a gradient is not finite", place)

    @torch.no_grad()
    def evaluate(self) -> Scores:
        """Return all metrics of train, valid and test nodes, without dropout; None if undefined."""
        scores, _ = self._scores()
        return scores

    @torch.no_grad()
    def _scores(self) -> tuple[Scores, float | None]:
        """Return the metrics, and the validation loss if it is monitored."""
        self.learned.train(False)
        with ExitStack() as averaged:
            if self.average is not None:
                averaged.enter_context(self.average.applied())
            output, loss = self.call.output(), None
            if not self.scores:
                for split, rows in self.rows.items():
                    checked_rows(rows, split, len(output))
            scores = score(self.graph, self.task, output, self.rows)
            if self.monitor.name == "valid_loss" and self.validated:
                rows = self.rows["valid"]
                share = float(self.task.loss(self.graph, output[rows], rows))
                loss = self.comm.allreduce(share, where="validation loss")
        return scores, loss if loss is None or math.isfinite(loss) else None

    def _evaluated(self) -> dict[str, Any]:
        """Return an evaluation's entries in the record of an epoch."""
        self.scores, loss = self._scores()
        found: dict[str, Any] = {s: self.scores[s][self.task.metric] for s in SPLITS}
        if self.monitor.name == "valid_loss":
            found["valid_loss"] = loss
        if any(len(metrics) > 1 for metrics in self.scores.values()):
            found["metrics"] = self.scores
        return found

    def _take_note(self, record: dict[str, Any]) -> None:
        best, value = False, None
        if self._evaluates(record["epoch"]):
            value = self.monitor.choose(record, self.scores)
            best = self.progress.note(record["epoch"], value, self.monitor.at_test(self.scores))
        with usable(self.resumed):
            self.rate.end(value)
        self.resumed = None
        record |= {"metric": self.task.metric, "best_epoch": self.progress.best_epoch}
        self.callbacks.epoch(self, record)
        if self.journal is not None and self.rank_journal is not None:
            self.journal.write(record | {"checkpoint": self.store.newest_epoch()})
            self.rank_journal.write({"epoch": record["epoch"], **self.costs.ranks})
        if self.comm.rank == 0:
            self.reporter.epoch(record)
        if best:
            self._save(best=True)

    def _evaluates(self, epoch: int) -> bool:
        return epoch % self.config.training.eval_every == 0 or epoch == self.config.training.epochs

    def _stops(self, reason: str) -> bool:
        """Return whether any rank was asked to stop; the same on all ranks."""
        failed = bool(self.store.failure()) and self.config.checkpoints.must_succeed
        asked = self.comm.size - self.comm.rank if reason else 0
        flags = np.array([asked, failed], np.int64)
        stop, failed = self.comm.allreduce(flags, "max", where="agree to stop")
        if failed:
            ending.check_failure(self)
        if stop:
            ending.say_stop(self, reason, first=self.comm.size - int(stop))
        return bool(stop)

    def _save(self, best: bool = False) -> None:
        with self.saving.phase("checkpoint"):
            self._save_now(best)

    def _save_now(self, best: bool) -> None:
        average = None if self.average is None else self.average.values
        arrays, sharded, plain = capture(
            self.learned,
            self.optimizer,
            self.graph.node_ids,
            average,
            replicated=self.comm.rank == 0,
        )
        state = {
            "optimizer": plain,
            "rate": self.rate.stored(),
            "callbacks": self.callbacks.stored(),
        }
        checkpoint = Checkpoint(
            epoch=self.epoch if not best else self.progress.best_epoch,
            config=self.config,
            graph_fingerprint=self.graph.graph_fingerprint,
            kinds=self.graph.kinds,
            weighted=self._content.weights,
            num_parts=self.comm.size,
            progress=self.progress.stored(),
            task=self.task.stored(),
            model_file=self._model_file,
            arrays=arrays,
            sharded=sharded,
            state={name: values for name, values in state.items() if values},
        )
        self.store.save(checkpoint, best=best)

    def _restore(self, path: Path, checkpoint: Checkpoint) -> None:
        larger = self.monitor.larger
        self.progress = Progress.of(checkpoint.progress, checkpoint.epoch, path, larger=larger)
        with agreed(self.comm, "restore the checkpoint"):
            check_task(checkpoint, self.task.stored(), path)
            sharded = restored_rows(self.learned, checkpoint, self.graph, path)
            restore_model(self.learned, checkpoint, sharded, path)
            if self.average is not None:
                self.average.values = restored_average(self.learned, checkpoint, sharded, path)
            with usable(path):
                restore_optimizer(self.learned, self.optimizer, checkpoint, sharded, path)
                self.rate.restore(checkpoint.state.get("rate", {}))
                self.callbacks.restore(checkpoint.state.get("callbacks", {}))
        self.resumed = path
        self.epoch = self.start = checkpoint.epoch
        if self.comm.rank == 0:
            say(f"resuming after epoch {self.epoch} from {path}")

    def _not_finite(self, epoch: int, what: str, place: str) -> NoReturn:
        """Raise NumericalError on all ranks; `place` names where it began."""
        self.store.finish()
        last = next(map(str, self.store.paths()), "none yet")
        raise NumericalError(
            f"{what} in epoch {epoch}, first in {place}; lower --lr; last good checkpoint: {last}"
        )
