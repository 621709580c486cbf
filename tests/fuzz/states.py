"""Kinds of damaged training states, run folders, model folders and checkpoints."""

import io
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.fuzz.bench import Bench, kind

STOPPED = ("classify_hip", "classify_points", "mlm", "pretrain_hip", "regress", "multilabel")


def copy_run(bench: Bench, name: str = "", kind_of: str = "stopped") -> Path:
    """Copy a small run and the data that it was trained on."""
    name = name or bench.pick(*STOPPED)
    shutil.copytree(bench.runs.parent / "inputs", "inputs", dirs_exist_ok=True)
    return Path(shutil.copytree(bench.runs / kind_of / name, Path("runs") / name))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run but its lock, with its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if "lock" not in p.name}


def check_refused(bench: Bench, run: Path, file: Path) -> None:
    """Resume; the state must be refused by name, and the folder left alone."""
    before = contents(run)
    message = bench.refuse("resume", run, "--quiet")
    assert file.name in message, message
    after = contents(run)
    assert after == before, [name for name in after if after[name] != before.get(name)]


@kind
def state_cut(bench: Bench) -> None:
    """A training state that ends too early is refused by name, and nothing is changed."""
    run = copy_run(bench)
    file = run / "checkpoints" / "last.pt"
    file.write_bytes(bench.pick(bench.cut(file.read_bytes(), 0.0, 0.99), b"", bench.noise(500)))
    check_refused(bench, run, file)


@kind
def state_with_code(bench: Bench) -> None:
    """A pickle that would run code in the state's place is refused, and nothing is executed."""
    run = copy_run(bench)
    file = run / "checkpoints" / "last.pt"
    mark = bench.folder / "executed"

    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (mark,))

    if bench.pick(True, False):
        file.write_bytes(pickle.dumps(Harm()))
    else:
        state = torch.load(file, weights_only=True)
        torch.save({**state, "extra": Harm()}, file)
    check_refused(bench, run, file)
    assert not mark.exists()


def tensors_of(state: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all tensors in nested dicts and lists."""
    if isinstance(state, torch.Tensor):
        return [path]
    if not isinstance(state, dict | list):
        return []
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return [found for key, value in items for found in tensors_of(value, (*path, key))]


def change(state: Any, path: tuple[Any, ...], function: Callable[[Any], Any]) -> None:
    """Replace what stands at a path."""
    for key in path[:-1]:
        state = state[key]
    state[path[-1]] = function(state[path[-1]])


def spoil(bench: Bench, tensor: torch.Tensor) -> Any:
    """Return a tensor of another shape or type, one that is not finite, or something else."""
    choices: list[Any] = [
        tensor.reshape(-1)[:0],
        torch.cat([tensor.reshape(-1), tensor.reshape(-1)]),
        tensor.unsqueeze(0),
        tensor.to(torch.complex64),
        None,
        "nonsense",
        [1, 2],
    ]
    if tensor.is_floating_point():
        bad = bench.pick(float("nan"), float("inf"), -float("inf"))
        choices += [tensor.half(), torch.full_like(tensor, bad)]
    return bench.pick(*choices)


@kind
def state_with_a_wrong_tensor(bench: Bench) -> None:
    """A weight, moment or average of a wrong shape, type or value is refused before it is used."""
    run = copy_run(bench)
    file = run / "checkpoints" / "last.pt"
    state = torch.load(file, weights_only=True)
    paths = [path for path in tensors_of(state) if path[0] in {"model", "optimizer", "average"}]
    change(state, bench.pick(*paths), lambda tensor: spoil(bench, tensor))
    torch.save(state, file)
    check_refused(bench, run, file)


@kind
def state_with_a_missing_entry(bench: Bench) -> None:
    """A state of which a part was removed is refused before it is used."""
    run = copy_run(bench)
    file = run / "checkpoints" / "last.pt"
    state = torch.load(file, weights_only=True)
    part = bench.pick("model", "optimizer", "progress", "window", "states", "moments", "groups")
    if part in state:
        del state[part]
    elif part == "states":
        state["optimizer"]["states"] = {}
    elif part == "groups":
        state["optimizer"]["groups"] = state["optimizer"]["groups"][:-1]
    else:
        # Version 0.1 did not record which parameters never had a gradient; later states do.
        states, groups = state["optimizer"]["states"], state["optimizer"]["groups"]
        names = {name for group in groups for name in group["params"]}
        state["optimizer"]["unused"] = sorted(names - states.keys())
        del states[bench.pick(*states)]
    torch.save(state, file)
    check_refused(bench, run, file)


@kind
def state_with_wrong_progress(bench: Bench) -> None:
    """Counts that no run can have are refused before they are used."""
    run = copy_run(bench)
    file = run / "checkpoints" / "last.pt"
    state = torch.load(file, weights_only=True)
    name = bench.pick("step", "best_step", "samples_read", "samples_bad", "seconds")
    state["progress"][name] = bench.pick(-1, "4", None, [4], float("nan"))
    torch.save(state, file)
    check_refused(bench, run, file)


@kind
def recorded_settings_damaged(bench: Bench) -> None:
    """A run whose settings were damaged is refused by the name of the file."""
    run = copy_run(bench)
    file = run / "config.yaml"
    text = file.read_text()
    content = bench.pick(
        "",
        "- 1\n",
        text.replace("task:", "tusk:"),
        text.replace("steps: 8", "steps: many"),
        text.replace("steps: 8", "steps: .nan"),
        text + "unknown: 3\n",
        text + "steps: 9\n",
        "a: [" * 4000,
    )
    file.write_text(content)
    bench.refuse(bench.pick("resume", "evaluate"), run, says=(r"config\.yaml|steps|unknown|task",))


@kind
def model_file_damaged(bench: Bench) -> None:
    """Weights that were cut, or whose header lies, are refused by name."""
    folder = Path(shutil.copytree(bench.runs / "finished" / "classify_hip" / "model", "model"))
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = struct.pack("<Q", bench.pick(2**63, 2**40, bench.whole(0, 40), len(data) * 2))
    file.write_bytes(
        bench.pick(bench.cut(data, 0.0, 0.99), length + data[8:], b"", bench.noise(99))
    )
    bench.refuse(*use(bench, folder), says=(r"model\.safetensors",))


def use(bench: Bench, folder: Path) -> tuple[Any, ...]:
    """Return a command that reads a model folder."""
    return bench.pick(
        ("evaluate", folder, "--data", "digits", "--limit", "1"),
        ("export", folder, "--out", "x.onnx"),
        ("finetune", "--model", folder, "--data", "digits", "--out", "run", "--limit", "1"),
        ("embed", folder, "digits", "--out", "x.npz"),
    )


@kind
def model_with_wrong_weights(bench: Bench) -> None:
    """Weights that are missing, misshapen or not finite are refused, with their names."""
    folder = Path(shutil.copytree(bench.runs / "finished" / "classify_hip" / "model", "model"))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = bench.pick(*[name for name, tensor in tensors.items() if tensor.numel() > 1])
    tensor = tensors.pop(name)
    form = bench.pick("missing", "misshapen", "nan", "inf")
    if form == "misshapen":
        tensors[name] = torch.cat([tensor.reshape(-1), tensor.reshape(-1)])
    elif form != "missing":
        tensors[name] = tensor.clone()
        tensors[name].view(-1)[bench.whole(0, tensor.numel())] = float(form)
    save_file(tensors, file)
    bench.refuse(*use(bench, folder), says=(name.replace(".", r"\."),))


@kind
def model_settings_damaged(bench: Bench) -> None:
    """A model folder whose settings cannot be read is refused by the name of the file."""
    folder = Path(shutil.copytree(bench.runs / "finished" / "classify_hip" / "model", "model"))
    file = folder / "config.json"
    text = file.read_text()
    content = bench.pick(
        "",
        "[]",
        "{}",
        text[: len(text) // 2],
        "[" * 100_000,
        '{"format": ' + "9" * 5000 + "}",
        text.replace('"token_dim": 8', '"token_dim": "eight"'),
        text.replace('"token_dim": 8', '"token_dim": -8'),
        text.replace('"token_dim": 8', '"token_dim": NaN'),
        text.replace('"token_dim"', '"tokendim"'),
    )
    file.write_text(content)
    bench.refuse(*use(bench, folder), says=(r"config\.json|token_?dim",))


@kind
def checkpoint_of_somebody_else(bench: Bench) -> None:
    """Foreign bytes given to convert are refused by name, and nothing in them is executed."""
    mark = bench.folder / "executed"

    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (mark,))

    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(2)}, "args": Harm()}, buffer)
    content = bench.pick(
        pickle.dumps(Harm()),
        pickle.dumps({"w": 1}),
        buffer.getvalue(),
        bench.cut(buffer.getvalue()),
        bench.noise(300),
        b"",
    )
    name = f"x.{bench.pick('pt', 'pth', 'bin', 'ckpt', 'safetensors', 'npz', 'pkl')}"
    (bench.folder / name).write_bytes(content)
    bench.refuse("convert", name, "out", says=(rf"x\.{name[2:]}",))
    assert not mark.exists()
    assert not Path("out").exists()
