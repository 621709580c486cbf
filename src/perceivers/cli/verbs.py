"""The table of verbs: the function that each one calls, and how its result is printed.

Flags, types, defaults and help come from the signature and the docstring of the function. Importing
this module imports neither torch nor the functions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

WORKFLOWS = "perceivers.workflows"


@dataclass(frozen=True)
class Verb:
    """One verb.

    Args:
        function: Module in ``perceivers.workflows`` and name of the function, as ``module:name``.
        line: What the verb does, for the list of verbs.
        show: Function of the same module that turns the result into a ``Shown``; its keywords are
            arguments of the call. Empty if the function returns a ``Shown`` itself.
        typed: Argument that receives the command as it was typed.
        settings: Class in the same module whose fields the function takes as ``**options``.
        described: Function of the same module whose docstring describes this one too.
        skip: Arguments that only Python has.
        flags: Differences from the signature, by argument: keywords of ``add_argument``, and
            ``flag``, the name on the command line.
        quiet: Help of a flag ``--quiet`` that turns off the function's ``report``; empty without.
        interrupted: What to do after an interruption, appended to its message; ``{out}`` and other
            arguments are filled in.
        trains: Whether the verb has the settings of a training run; they depend on the task.
    """

    function: str
    line: str
    show: str = "show"
    typed: str = ""
    settings: str = ""
    described: str = ""
    skip: tuple[str, ...] = ()
    flags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quiet: str = ""
    interrupted: str = ""
    trains: bool = False

    def load(self, name: str) -> Any:
        """Return an object of the function's module by name."""
        return getattr(import_module(f"{WORKFLOWS}.{self.function.partition(':')[0]}"), name)

    def load_function(self) -> Any:
        """Return the function."""
        return self.load(self.function.partition(":")[2])


AGAIN = "; run the same command again to continue"
RESUME = "; continue with: perceivers resume {out}"
MODALITIES: Mapping[str, Any] = {"nargs": "+", "metavar": "MODALITY"}
SEVERAL: Mapping[str, Any] = {"nargs": "+"}


def _training(name: str, line: str) -> Verb:
    return Verb(f"training:{name}", line, interrupted=RESUME, trains=True)


VERBS: dict[str, Verb] = {
    "demo": Verb("demo:run_demo", "pre-train, fine-tune and test on built-in real data"),
    "models": Verb("inspection:tabulate_models", "list the named models", show=""),
    "recipes": Verb(
        "opening:show_recipes", "list, show or copy packaged training settings", show=""
    ),
    "pretrain": _training("pretrain", "learn from unlabelled data"),
    "finetune": _training("finetune", "fine-tune a trained model for a task"),
    "train": _training("train", "train a model for a task from scratch"),
    "resume": Verb(
        "training:resume",
        "resume a stopped run from its last checkpoint",
        skip=("report",),
        interrupted="; continue with: perceivers resume {run}",
    ),
    "bakeoff": Verb(
        "bakeoff:bakeoff",
        "find the best small model for some data",
        settings="BakeoffSettings",
        quiet="Do not print a line per run.",
        interrupted=AGAIN,
    ),
    "shuffle": Verb(
        "shuffling:shuffle",
        "measure how much a model depends on element order",
        settings="ShuffleSettings",
        quiet="Do not print a line per run.",
        interrupted=AGAIN,
    ),
    "evaluate": Verb("evaluation:evaluate", "compute metrics on a held-out split"),
    "predict": Verb(
        "prediction:predict",
        "classify files, fill in masked text, compute flow",
        skip=("batch_size",),
        flags={"texts": {"flag": "text"}},
    ),
    "embed": Verb(
        "embedding:write_features",
        "write the features of files or a data set",
        described="embed",
    ),
    "probe": Verb("probing:probe", "evaluate frozen features with k-NN and a linear probe"),
    "anomaly": Verb(
        "anomaly:score_files",
        "score files by masked reconstruction error",
        described="find_anomalies",
    ),
    "reconstruct": Verb(
        "reconstructing:reconstruct_files",
        "reconstruct files with a masked autoencoder",
        described="reconstruct",
        flags={"fill": MODALITIES},
    ),
    "explain": Verb("explaining:draw_all", "draw attention maps", described="explain"),
    "report": Verb("comparing:report", "regenerate a run's report, or compare runs", show=""),
    "export": Verb("exporting:export", "write ONNX or torch.export, run it and compare"),
    "plan": Verb(
        "planning:plan",
        "estimate operations, memory, hours and the largest batch",
        settings="PlanSettings",
    ),
    "bench": Verb(
        "benchmarking:run_bench",
        "compare time and memory of models on this machine",
        typed="command",
        quiet="Do not print a line per measurement.",
        flags=dict.fromkeys(("models", "sizes", "passes", "memory_limit"), SEVERAL),
    ),
    "data": Verb(
        "checking:check_data",
        "check the data at an address and propose commands",
        skip=("val_share", "threads"),
    ),
    "convert": Verb("conversion:convert", "convert released weights and verify them"),
    "doctor": Verb("inspection:check_installation", "check this machine and installation", show=""),
}
# Second words of a verb; without one of them, the first is meant.
ACTIONS: dict[str, dict[str, Verb]] = {
    "data": {
        "check": VERBS["data"],
        "index": Verb("checking:index_shards", "write an index next to tar shards", show=""),
    }
}
