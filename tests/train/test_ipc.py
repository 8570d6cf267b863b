"""Whole runs whose messages go from GPU to GPU by CUDA IPC, on a GPU, real or fake."""

from __future__ import annotations

import json

from tests.train.test_gpu import MODELS, losses, machine, parts, train  # noqa: F401


def test_losses_are_those_of_staged_messages_to_the_bit(machine, train, tmp_path):  # noqa: F811
    """With halo buffers so small that a slot takes many messages."""
    options = MODELS[2], "--halo-buffer 16KiB --epochs 2"
    for ranks in [ranks for ranks in machine.ranks if ranks > 1]:
        folders = [f"ipc{ranks}", f"staged{ranks}"]
        runs = [(*options, f"--transport {way}") for way in ("ipc", "staged")]
        ipc, staged = map(losses, train(ranks, *runs, folders=folders))
        starts = [json.loads((tmp_path / name / "starts.jsonl").read_text()) for name in folders]
        assert [start["transport"] == "CUDA IPC" for start in starts] == [True, False]
        assert ipc == staged
