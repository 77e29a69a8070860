"""What each peer needs to run: packages at fixed versions, its converter, and what its users would choose.

In: a peer's name, as ``llama.cpp``. Out: its :class:`Environment`. The versions of all packages, those of
dependencies too, stand in ``locks/NAME.txt``; how an environment is made of that is ``installation.py``'s, how a
checkpoint is converted ``conversion.py``'s. Why each peer is run as it is, docs/peers.md says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.workers.gguf_header import FILE_TYPES

FOLDER = Path(__file__).parent
ALL = "all"
GPU_ONLY = "vllm"


@dataclass(frozen=True)
class Environment:
    """A peer and what it is installed from.

    Attributes:
        name: As ``--peer`` has it.
        peer: Its row of :data:`~llmc.runtimes.bench.workers.peers.PEERS`.
        packages: What pip is asked for, with versions; dependencies are held by the lock.
        modules: Imported once before an environment counts as whole.
        types: Numbers that a checkpoint can be converted to; the first is the default. Empty: as it is.
        variants: Those that are measured unless one is named; None: all.
        converter: File of ``converters/`` that the peer's interpreter runs; None: it opens the checkpoint itself.
        source: Package that is built from its source, of which the converter is a part; None: all are wheels.
        unwanted: Packages that dependencies ask for and that fail beside torch for processors; taken away again.
        torch: Version of torch's wheel for processors alone; None: what the packages ask for.
        on_gpu: It runs on a GPU alone.
        installed_bytes, download_bytes: About, with Python 3.11 on x86-64: for what is told before an installation.
    """

    name: str
    peer: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    types: tuple[str, ...]
    installed_bytes: int
    download_bytes: int
    variants: tuple[str, ...] | None = None
    converter: str | None = None
    source: str | None = None
    unwanted: tuple[str, ...] = ()
    torch: str | None = "2.13.0"
    on_gpu: bool = False

    @property
    def lock(self) -> Path:
        """Versions of all packages, a line each, as ``pip install --constraint`` reads them."""
        return FOLDER / "locks" / f"{self.name}.txt"

    @property
    def script(self) -> Path | None:
        """The converter's file."""
        return None if self.converter is None else FOLDER / "converters" / self.converter

    @property
    def key(self) -> str:
        """Changes with everything that an environment is made of."""
        said = "\n".join([*self.packages, str((self.source, self.torch, self.unwanted)), self.lock.read_text()])
        return hashlib.sha256(said.encode()).hexdigest()[:12]


GIB = 1 << 30
MIB = 1 << 20
ENVIRONMENTS: Mapping[str, Environment] = {
    each.name: each
    for each in (
        Environment(
            "llama.cpp",
            "llamacpp-python",
            ("transformers", "sentencepiece", "numpy", "protobuf"),
            ("llama_cpp", "torch", "transformers"),
            ("Q4_K_M", *(name for name in FILE_TYPES.values() if name != "Q4_K_M")),
            installed_bytes=1500 * MIB,
            download_bytes=420 * MIB,
            converter="to_gguf.py",
            source="llama-cpp-python",
        ),
        Environment(
            "onnxruntime-genai",
            "genai",
            ("onnxruntime-genai", "onnxruntime", "onnx", "onnx-ir", "transformers"),
            ("onnxruntime_genai", "onnxruntime_genai.models.builder"),
            ("int4", "int8", "fp32"),
            installed_bytes=1450 * MIB,
            download_bytes=360 * MIB,
            variants=("cpu",),
            converter="to_genai.py",
        ),
        Environment(
            "openvino-genai",
            "openvino-genai",
            ("openvino-genai", "openvino-tokenizers", "openvino", "optimum-intel", "nncf"),
            ("openvino_genai", "optimum.intel"),
            ("int4", "int8", "fp16", "fp32"),
            installed_bytes=2000 * MIB,
            download_bytes=470 * MIB,
            converter="to_openvino.py",
            # The registry's wheel is built for torch with CUDA; transformers fails where it finds it, not without it.
            unwanted=("torchvision",),
        ),
        Environment(
            "ctranslate2",
            "ctranslate2",
            ("ctranslate2", "transformers", "numpy", "sentencepiece"),
            ("ctranslate2", "ctranslate2.converters", "transformers"),
            ("int8", "int8_bfloat16", "bfloat16", "float32"),
            installed_bytes=1276 * MIB,
            download_bytes=320 * MIB,
            converter="to_ctranslate2.py",
        ),
        Environment(
            "transformers",
            "transformers",
            ("transformers", "numpy"),
            ("torch", "transformers"),
            ("float32", "bfloat16"),
            installed_bytes=1200 * MIB,
            download_bytes=290 * MIB,
            variants=("eager", "compile"),
        ),
        Environment(
            GPU_ONLY,
            "vllm",
            ("vllm",),
            ("vllm",),
            ("auto", "bfloat16", "float16"),
            installed_bytes=11 * GIB,
            download_bytes=5 * GIB,
            torch=None,
            on_gpu=True,
        ),
    )
}
"""Peer's name -> what it is installed from."""


def chosen_environments(names: str) -> list[Environment]:
    """Environments of a list of names with commas between; ``all``: those that run on a processor.

    Raises:
        UsageError: a name that no peer has.
    """
    if names == ALL:
        return [each for each in ENVIRONMENTS.values() if not each.on_gpu]
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in ENVIRONMENTS]
    if unknown or not wanted:
        raise UsageError(
            f"no peer is called {names!r}; known: {', '.join(ENVIRONMENTS)}, or {ALL} without {GPU_ONLY}"
        )
    return [ENVIRONMENTS[name] for name in dict.fromkeys(wanted)]
