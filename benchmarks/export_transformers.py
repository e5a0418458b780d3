"""Write transformers with random weights as ONNX files, in all the ways that PyTorch exports them.

    python benchmarks/export_transformers.py FOLDER                      # small ones, all exporters
    python benchmarks/export_transformers.py FOLDER --full --only bert   # BERT-base, 438 MB a file

Needs torch, onnxscript and transformers, which the project itself does not; nothing is downloaded.
``benchmarks/simplifiers.py FOLDER/*.onnx`` then compares ``simplify`` with its peers on them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
}
EXPORTS = {
    "torchscript17": {"dynamo": False, "opset_version": 17},
    "dynamo18": {"dynamo": True, "opset_version": 18},
    "plain23": {"dynamo": True, "opset_version": 23, "optimize": False},
    "dynamo23": {"dynamo": True, "opset_version": 23},
}


def models(full: bool) -> dict[str, Callable[[], tuple[Any, tuple[str, ...]]]]:
    """Return a function per model that makes it and names its inputs."""
    import transformers as t

    text = {} if full else SMALL
    picture = {k: v for k, v in text.items() if k != "vocab_size"}
    if not full:
        picture |= {"image_size": 32, "patch_size": 8}
    decoder = {**text, "num_key_value_heads": 2, "use_cache": False}
    ids, masked = ("input_ids",), ("input_ids", "attention_mask")
    return {
        "bert": lambda: (t.BertModel(t.BertConfig(**text)), (*masked, "token_type_ids")),
        "roberta": lambda: (t.RobertaModel(t.RobertaConfig(**text)), masked),
        "electra": lambda: (t.ElectraModel(t.ElectraConfig(**text)), masked),
        "llama": lambda: (t.LlamaModel(t.LlamaConfig(**decoder)), ids),
        "qwen2": lambda: (t.Qwen2Model(t.Qwen2Config(**decoder)), ids),
        "vit": lambda: (t.ViTModel(t.ViTConfig(**picture)), ("pixel_values",)),
    }


def export(model: Any, names: tuple[str, ...], target: Path, kind: str) -> None:
    """Write one file with dynamic batch and, for text, length."""
    import torch

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.eval()

        def forward(self, *inputs: Any) -> Any:
            return self.inner(**dict(zip(names, inputs, strict=True)), return_dict=True)[0]

    size = getattr(model.config, "image_size", 0)
    pixels = (torch.randn(2, 3, size, size),)
    arguments = pixels if size else tuple(torch.ones(2, 12, dtype=torch.long) for _ in names)
    axes = {0: "batch"} if size else {0: "batch", 1: "tokens"}
    options: dict[str, Any] = dict(EXPORTS[kind])
    if options["dynamo"]:
        free = {axis: torch.export.Dim(name, min=2, max=512) for axis, name in axes.items()}
        options |= {"dynamic_shapes": (tuple(free for _ in names),), "external_data": False}
        options["verbose"] = False
    else:
        options["dynamic_axes"] = dict.fromkeys((*names, "y"), axes)
    torch.onnx.export(
        First(), arguments, str(target), input_names=list(names), output_names=["y"], **options
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="default: only try, keep nothing")
    parser.add_argument("--full", action="store_true", help="the usual sizes")
    parser.add_argument("--only", action="append", default=[], help="one model; repeatable")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    missing = [
        n for n in ("torch", "onnxscript", "transformers") if not importlib.util.find_spec(n)
    ]
    if missing:
        print(f"nothing to do without {', '.join(missing)}")
        return
    with tempfile.TemporaryDirectory() as spare:
        folder = arguments.folder or Path(spare)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, arguments)


def write(folder: Path, arguments: argparse.Namespace) -> None:
    import torch

    for name, make in models(arguments.full).items():
        if arguments.only and name not in arguments.only:
            continue
        for kind in EXPORTS:
            torch.manual_seed(0)
            target = folder / f"{name}_{kind}.onnx"
            outcome = "failed"
            with contextlib.suppress(Exception):  # no exporter can do all of them
                export(*make(), target, kind)
                outcome = f"{target.stat().st_size} bytes"
            print(f"{target.name}: {outcome}", flush=True)


if __name__ == "__main__":
    main()
