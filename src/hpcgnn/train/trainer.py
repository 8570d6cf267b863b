"""The training loop: epochs over all ranks, from wherever the last checkpoint stands."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from hpcgnn.comm.agreement import agreed
from hpcgnn.errors import HpcgnnError, InputError, NumericalError, OutputError, say, warn
from hpcgnn.graph.partitioned import PartitionedGraph
from hpcgnn.graph.subgraph import message_flow
from hpcgnn.models.build import build_model
from hpcgnn.models.demands import facts_of
from hpcgnn.models.inputs import LabelInput
from hpcgnn.models.stack import Flow
from hpcgnn.nn.embedding import is_sharded
from hpcgnn.nn.gradients import add_up
from hpcgnn.tasks.classes import find_task, labelled
from hpcgnn.train.checkpoint.file import Checkpoint, read_sharded
from hpcgnn.train.checkpoint.resume import newest_of_run
from hpcgnn.train.checkpoint.state import capture, restore_model, restore_optimizer
from hpcgnn.train.checkpoint.store import CheckpointStore
from hpcgnn.train.config import Config
from hpcgnn.train.diagnosis import first_gradient, first_layer
from hpcgnn.train.journal import Journal
from hpcgnn.train.open import check_training
from hpcgnn.train.optimisation import Attack, arithmetic, build_optimizer, configure, learning_rate
from hpcgnn.train.plan.refusal import explained
from hpcgnn.train.progress import Progress
from hpcgnn.train.run_directory import ENDED, REQUEUE, note_end
from hpcgnn.train.stop import StopRequest, TimeLimit
from hpcgnn.train.telemetry import Counters, Profile, Reporter, Stopwatch, over_ranks

NO_VALIDATION = "no validation node has a label that can be scored"


class Trainer:
    """Trains one model on one partitioned graph.

    Args:
        graph: this rank's part.
        config: what to do.
        run_dir: folder for metrics.jsonl and checkpoints/; made by rank 0.
        resume: go on from the newest whole checkpoint, if there is one.
        stop: signals heard so far and from now on; None: those that arrive during `run`.

    Raises:
        InputError: the graph and the configuration, or a checkpoint to resume, don't fit together.
    """

    def __init__(
        self,
        graph: PartitionedGraph,
        config: Config,
        run_dir: Path,
        *,
        resume: bool = False,
        stop: StopRequest | None = None,
    ) -> None:
        self.stop = stop
        self.graph = graph = configure(graph, config)
        self.config, self.run_dir = config, run_dir
        self.comm = graph.ring.comm
        self.device = graph.node_ids.device
        check_training(config, facts_of(graph))
        self.task = find_task(graph, config.training.metric)
        labels = graph.labels
        masks = (graph.train_mask, graph.valid_mask, graph.test_mask)
        if labels is None or masks[0] is None:
            raise InputError("the graph has no labels")
        self.labels, self.masks = labels, masks
        self.validated = self._is_validated()
        self.store = CheckpointStore(run_dir / "checkpoints", self.comm, config.checkpoints.keep)
        # Before the model is built: one of other settings may not even fit the graph.
        found = newest_of_run(self.store, graph, config) if resume else None
        self.model = build_model(
            config.model, graph, self.task.num_outputs, config.training.seed
        ).to(self.device)
        self.parameters = list(self.model.parameters())
        self.replicated = [p for p in self.parameters if not is_sharded(p)]
        self.optimizer = build_optimizer(config, self.parameters)
        self.progress = Progress()
        self.epoch = self.start = 0
        if found is not None:
            self._restore(*found)
        self.journal = self._open_journal()
        if self.journal is not None:
            self.store.before_writing = self.journal.sync
        self.reporter = Reporter(config.training.epochs, self.task.metric)
        self.train_rows = labelled(labels, masks[0])
        self.flow = self._message_flow()

    def _is_validated(self) -> bool:
        """Whether validation gives a score; without, patience is refused."""
        valid, patience = self.masks[1], self.config.training.patience
        if valid is not None and self.task.is_scored(self.graph, valid):
            return True
        if patience:
            raise InputError(
                f"--patience {patience} needs validation nodes whose {self.task.metric} is "
                "defined, and this split has none: leave it out, or choose another --split"
            )
        if self.comm.rank == 0:
            warn(f"hpcgnn: note: {NO_VALIDATION}: no best.h5 is kept")
        return False

    @property
    def begins(self) -> bool:
        """Whether `run` will train with the settings of now, or keep the first state of a run."""
        return self.start == 0 or not self.ended

    @property
    def ended(self) -> bool:
        """Whether nothing is left to be trained: by the number of epochs, or by patience."""
        training = self.config.training
        return self.epoch >= training.epochs or self.progress.ran_out(training.patience)

    def run(self, profile: Profile | None = None) -> bool:
        """Train to the end, or to an agreed stop; whether the end was reached.

        Raises:
            OutOfMemoryError: with what was asked for, and how many ranks would do.
        """
        try:
            with explained(self.graph, self.config, self.device):
                return self._run(profile)
        except HpcgnnError as error:
            if self.comm.rank == 0:
                note_end(self.run_dir, f"failed: {error}")
            raise

    def _run(self, profile: Profile | None) -> bool:
        limit, longest, finished = TimeLimit(), 0.0, True
        with ExitStack() as signals:
            request = self.stop or signals.enter_context(StopRequest())
            while not self.ended:
                start = time.perf_counter()
                record = self._epoch(self.epoch + 1)
                self.epoch += 1
                if profile is not None:
                    profile.step()
                self._take_note(record)
                longest = max(longest, time.perf_counter() - start)
                margin = self.config.training.time_margin + 2 * longest
                reason = request.reason
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
            self._say_end(finished)
        self._check_failure(ended=finished)
        self.store.close()
        return finished

    def _epoch(self, epoch: int) -> dict[str, Any]:
        watch, before = Stopwatch(), Counters.of(self.graph.ring)
        self.graph.set_epoch(epoch)
        with watch.phase("epoch"), self.comm.at(f"epoch {epoch}"):
            loss = self._step(epoch, watch)
            scores: dict[str, float | None] = dict.fromkeys(("train", "valid", "test"))
            if self._evaluates(epoch):
                with self.comm.at("evaluation"):
                    scores = self.evaluate()
        return {
            "epoch": epoch,
            "loss": loss,
            **scores,
            "epoch_seconds": watch.seconds["epoch"],
            "forward_seconds": watch.seconds["forward"],
            "backward_seconds": watch.seconds["backward"],
            **over_ranks(self.comm, self.graph.ring, before, self.device),
        }

    def _step(self, epoch: int, watch: Stopwatch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, epoch)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        if self.config.training.adversarial_steps:
            attack = Attack(self.model, self.graph, self.config)
            total = attack.run(lambda x_NF: self._pass(epoch, watch, x_NF, attack.steps))
        else:
            total = self._pass(epoch, watch)
        with watch.phase("backward"):
            self._sum_gradients(epoch)
        self.optimizer.step()
        return total

    def _pass(
        self, epoch: int, watch: Stopwatch, x_NF: Tensor | None = None, steps: int = 1
    ) -> float:
        """Forward and backward once; gradients of 1 / steps of the loss are added up."""
        rows, count = self._targets()
        with watch.phase("forward"), self.comm.at("forward"):
            logits = self._logits(x_NF, self.flow)
            loss = self.task.loss(logits[self._place(rows)], self.labels[rows], count)
            total = self.comm.allreduce(float(loss.detach()), where="loss")
        if not math.isfinite(total):
            place = first_layer(self.model, self.graph, x_NF)
            self._not_finite(f"the loss is {total}", epoch, place)
        del logits
        with watch.phase("backward"), self.comm.at("backward"):
            (loss / steps).backward()
        return total

    def _logits(self, x_NF: Tensor | None = None, flow: Flow | None = None) -> Tensor:
        with arithmetic(self.config.device.precision, self.device):
            logits: Tensor = self.model(self.graph, x_NF, flow)
        return logits.float()

    def _message_flow(self) -> Flow | None:
        """Pruned layers for the training pass; none where a layer looks at all nodes anyway."""
        config = self.config
        whole = config.model.norm in ("batch", "graph") or config.model.jumping != "none"
        if not config.streaming.prune or whole:
            return None
        target_N = torch.zeros(self.graph.num_local_nodes, dtype=torch.bool, device=self.device)
        target_N[self.train_rows] = True
        flow = message_flow(self.graph, target_N, self.model.hops())
        return flow if any(step is not None for step in flow) else None

    def _place(self, rows: Tensor) -> Tensor:
        """Where the logits of these training nodes are."""
        return rows if self.flow is None else torch.searchsorted(self.train_rows, rows)

    def _targets(self) -> tuple[Tensor, int]:
        """Local training nodes whose label is not given as input, and their number on all ranks."""
        inputs = self.model.inputs
        if not isinstance(inputs, LabelInput):
            return self.train_rows, self.task.train_count
        rows = self.train_rows[~inputs.shown(self.graph)[self.train_rows]]
        return rows, self.comm.allreduce(len(rows), where="targets")

    def _sum_gradients(self, epoch: int) -> None:
        """Add up the gradients of replicated parameters over the ranks: one message."""
        if not add_up(self.parameters, self.comm):
            place = first_gradient(self.graph, self.model.named_parameters())
            self._not_finite("a gradient is not finite", epoch, place)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float | None]:
        """The metric on the train, valid and test nodes, without dropout; None where undefined."""
        self.model.eval()
        logits = self._logits()
        scores: dict[str, float | None] = {}
        for name, mask in zip(("train", "valid", "test"), self.masks, strict=True):
            score = math.nan if mask is None else self.task.score(self.graph, logits, mask)
            scores[name] = score if math.isfinite(score) else None
        return scores

    def _take_note(self, record: dict[str, Any]) -> None:
        if self.journal is not None:
            self.journal.write(record | {"checkpoint": self.store.newest_epoch()})
        if self.comm.rank == 0:
            self.reporter.epoch(record)
        if self._evaluates(record["epoch"]):
            best = self.progress.note(record["epoch"], record["valid"], record["test"])
            if best:
                self._save(best=True)

    def _evaluates(self, epoch: int) -> bool:
        return epoch % self.config.training.eval_every == 0 or epoch == self.config.training.epochs

    def _stops(self, reason: str) -> bool:
        """Whether a rank was asked to stop; the same on all ranks."""
        failed = bool(self.store.failure()) and self.config.checkpoints.must_succeed
        asked = self.comm.size - self.comm.rank if reason else 0
        flags = np.array([asked, failed], np.int64)
        stop, failed = self.comm.allreduce(flags, "max", where="agree to stop")
        if failed:
            self._check_failure()
        if stop and stop == asked:  # the first of those that were asked says so
            self.reporter.say(f"stopping after epoch {self.epoch}: {reason}")
        return bool(stop)

    def _save(self, best: bool = False) -> None:
        arrays, sharded = capture(
            self.model, self.optimizer, self.graph.node_ids, replicated=self.comm.rank == 0
        )
        checkpoint = Checkpoint(
            epoch=self.epoch if not best else self.progress.best_epoch,
            config=self.config,
            graph_fingerprint=self.graph.graph_fingerprint,
            num_parts=self.comm.size,
            progress=self.progress.stored(),
            task=self.task.stored(),
            arrays=arrays,
            sharded=sharded,
        )
        self.store.save(checkpoint, best=best)

    def _restore(self, path: Path, checkpoint: Checkpoint) -> None:
        self.progress = Progress.of(checkpoint.progress, checkpoint.epoch, path)
        sharded: dict[str, np.ndarray] = {}
        with agreed(self.comm, "restore the checkpoint"):
            if any(is_sharded(p) for p in self.parameters):
                sharded = read_sharded(path, self.graph.node_ids.cpu().numpy())
            restore_model(self.model, checkpoint, sharded, path)
            restore_optimizer(self.model, self.optimizer, checkpoint, sharded, path)
        self.epoch = self.start = checkpoint.epoch
        if self.comm.rank == 0:
            say(f"resuming after epoch {self.epoch} from {path}")

    def _open_journal(self) -> Journal | None:
        journal: Journal | None = None
        with agreed(self.comm, "metrics.jsonl"):
            if self.comm.rank == 0:
                path = self.run_dir / "metrics.jsonl"
                journal = Journal(path, self.epoch, self.config.training.epochs)
                try:
                    for name in (REQUEUE, ENDED):
                        path = self.run_dir / name
                        path.unlink(missing_ok=True)
                except OSError as error:
                    text = f"can't be removed: {error.strerror}; move it away"
                    raise OutputError(text, file=path) from None
        return journal

    def _say_end(self, finished: bool) -> None:
        if self.journal is not None:
            self.journal.close()
        if not finished:
            self._ask_for_requeue()
        if self.comm.rank != 0:
            return
        if not finished:
            self.reporter.say(f"stopped after epoch {self.epoch}; run again with --resume")
            return
        reason = self.progress.reason(self.config.training.patience)
        if self.epoch == self.start > 0:
            self.reporter.say(
                f"{reason} at epoch {self.epoch}; nothing was left to train: more --epochs go on, "
                "or a larger --patience where that ended it"
            )
        elif reason != "finished":
            self.reporter.say(f"{reason}, after epoch {self.epoch}")
        nothing = "no validation gave a score" if self.validated else NO_VALIDATION
        self.reporter.say(self.progress.best_line(self.task.metric, nothing, self.epoch))
        note_end(self.run_dir, reason)

    def _ask_for_requeue(self) -> None:
        with agreed(self.comm, REQUEUE):
            if self.comm.rank != 0:
                return
            path = self.run_dir / REQUEUE
            try:
                path.touch()
                if self.store.newest_epoch() <= self.start:
                    path.unlink()
                    raise OutputError(
                        f"stopped after epoch {self.epoch}, but no checkpoint after epoch "
                        f"{self.start} could be written, so the job isn't requeued: "
                        f"{self.store.error}"
                    )
            except OSError as error:
                raise OutputError(
                    f"can't be written ({error.strerror}), so a job script won't requeue this run: "
                    f"see to its run directory; it stopped after epoch {self.epoch}",
                    file=path,
                ) from None

    def _check_failure(self, ended: bool = False) -> None:
        failure = self.store.missing() if ended else ""
        if self.config.checkpoints.must_succeed:
            failure = failure or self.store.error
        failure = self.comm.broadcast(failure, where="checkpoint failure")
        if failure:
            raise OutputError(f"a checkpoint could not be written: {failure}")

    def _not_finite(self, what: str, epoch: int, place: str) -> NoReturn:
        """All ranks raise; `place` says where it began."""
        self.store.finish()
        last = next(map(str, self.store.paths()), "none yet")
        raise NumericalError(
            f"{what} in epoch {epoch}, first in {place}; lower --lr; last good checkpoint: {last}"
        )
