"""Runs that several processes share, one after the other: ``python shared_runs.py JOBS``.

Every job holds a verb and its settings as JSON; ``die`` lets process 1 raise, be killed, move the
folder or spoil its weights.
"""

import json
import os
import signal
import sys
from typing import Any

import torch

import perceivers.workflows.run as run_module
from perceivers.cli.main import main
from perceivers.errors import FolderLostError, UserError
from perceivers.training.loop import Interrupted, Trainer
from perceivers.workflows import training

DEATH_STEP = 3


def end_at(step: int, way: str) -> None:
    """End process 1, or ask it to stop, when it has done some steps."""
    original = Trainer._log

    def spy(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        if self.progress.step != step or self.runtime.rank != 1:
            return
        if way == "raise":
            raise KeyError("a bug of process 1")
        if way == "nan":
            with torch.no_grad():
                next(self.task.model.parameters()).view(-1)[0] = torch.nan
            return
        if way == "refuse":
            raise UserError("process 1 does not like this")
        if way == "move":
            self.folder.path.rename(self.folder.path.with_name("moved"))
            return
        os.kill(os.getpid(), signal.SIGKILL if way == "kill" else signal.SIGTERM)

    patched: Any = Trainer
    patched._log = spy


def run_job(verb: str, job: dict[str, Any]) -> None:
    """Run one job to its end."""
    if way := job.pop("die", None):
        end_at(DEATH_STEP, way)
    try:
        if verb == "resume":
            training.resume(job.pop("run"), quiet=True, **job)
        else:
            getattr(training, verb)(quiet=True, **job)
    except (Interrupted, FolderLostError) as error:
        sys.stdout.write(f"{error}\n")


if __name__ == "__main__":
    run_module.write_run_report = lambda folder: folder.report
    if sys.argv[1] == "cli":
        if os.environ.get("DIE"):
            end_at(DEATH_STEP, os.environ["DIE"])
        raise SystemExit(main(sys.argv[2:]))
    for each in json.loads(sys.argv[1]):
        run_job(each.pop("verb"), each)
