"""A folder of networks compiled ahead of time, and a file that says what they were compiled for."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import device as Device
from torch import nn

from musiccm import __version__
from musiccm.errors import MusiccmError
from musiccm.files import file_sha256, write_json
from musiccm.models.acceleration.packaged_call import Call, Example, compile_call, load_call
from musiccm.texts import read_json

FILE, SCHEMA = "compiled.json", 1
KEYS = ("part", "file", "sha256", "signature", "weights")

Part = tuple[nn.Module, str]
"""What of a model is compiled: a module and the name of its method."""

AGAIN = "compile it again by `musiccm export --compiled`, or leave the package out"


@dataclass(frozen=True)
class Target:
    """What machine code is good for.

    Args:
        bundle: Hash of the parts that the music is made with.
        decoder: `fast` or `original`.
        half: Whether the network computes in bf16.
        musiccm: This package's version, whose code was compiled.
        torch: PyTorch's version, whose library it calls.
        device: `cpu` or `cuda`.
        device_name: Of the card or processor.
        capability: The instructions that it has.
    """

    bundle: str
    decoder: str
    half: bool
    musiccm: str
    torch: str
    device: str
    device_name: str
    capability: str

    @classmethod
    def here(cls, bundle: str, decoder: str, half: bool, device: Device) -> Target:
        """What code that is compiled now, on this device, is good for."""
        name, capability = described_device(device)
        return cls(bundle, decoder, half, __version__, torch.__version__, device.type, name, capability)


def described_device(device: Device) -> tuple[str, str]:
    """Name and instructions of a device.

    Args:
        device: A CPU or a GPU.

    Returns:
        Of a GPU its name and compute capability, `9.0`. Of a CPU its model, the widest vectors that PyTorch uses and,
        on Linux, a digest of its flags: code is compiled for all that the processor has.
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return torch.cuda.get_device_name(device), f"{major}.{minor}"
    vectors = torch.backends.cpu.get_cpu_capability()
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), vectors
    # x86 says "flags" and "model name", ARM "Features"
    found = dict(re.findall(r"^(model name|flags|Features)\s*: (.*)$", told, flags=re.M))
    flags = " ".join(sorted((found.get("flags") or found.get("Features") or "").split()))
    digest = hashlib.sha256(flags.encode()).hexdigest()[:16]
    return found.get("model name", platform.machine()), f"{vectors}, flags {digest}"


@dataclass(frozen=True)
class CompiledPackage:
    """A folder that was made for this target, whose files are whole.

    Args:
        folder: The folder.
        calls: What it holds, as its file says.
    """

    folder: Path
    calls: Sequence[Mapping[str, str]]

    @classmethod
    def write(
        cls, folder: Path, target: Target, buckets: Sequence[str], parts: Mapping[str, Part],
        seen: Mapping[str, Mapping[str, Example]], device: Device,
    ) -> None:
        """Compile all that was seen.

        Args:
            folder: An empty folder.
            target: What it is good for.
            buckets: The shapes of music, in words.
            parts: By name.
            seen: Of each part the examples to compile it for, by signature.
            device: Where all is.

        Raises:
            MusiccmError: As `compile_call`.
        """
        calls = []
        for name, (owner, method) in parts.items():
            for number, (signature, example) in enumerate(seen[name].items()):
                path = folder / f"{name}-{number}.pt2"
                weights = compile_call(owner, method, example, path, device)
                calls.append({"part": name, "file": path.name, "sha256": file_sha256(path), "signature": signature,
                              "weights": weights})
        write_json(folder / FILE, {"schema": SCHEMA, "target": asdict(target), "buckets": list(buckets),
                                   "calls": calls})

    @classmethod
    def read(cls, folder: Path, target: Target) -> CompiledPackage:
        """Find a package, and look whether it fits; none of its code is loaded.

        Args:
            folder: What `write` filled.
            target: What it must be good for.

        Returns:
            The package.

        Raises:
            MusiccmError: It is no such folder, was compiled for something else, which is named, or is damaged.
        """
        path = folder / FILE
        stated = read_json(path, "a package that `musiccm export --compiled` writes")
        if stated.get("schema") != SCHEMA:
            raise MusiccmError(f"{path}: expected schema {SCHEMA}, found {stated.get('schema')!r}; {AGAIN}")
        try:
            for field in fields(Target):
                there, here = stated["target"][field.name], getattr(target, field.name)
                if there != here:
                    raise MusiccmError(f"{path}: was compiled for {field.name} {there!r}, found {here!r} here; {AGAIN}")
            calls = [{key: str(call[key]) for key in KEYS} for call in stated["calls"]]
        except (KeyError, TypeError) as error:
            raise MusiccmError(f"{path}: damaged or changed ({type(error).__name__}: {error}); {AGAIN}") from error
        for call in calls:
            _require_whole(folder, call)
        return cls(folder, calls)

    def load(self, parts: Mapping[str, Part], device: Device) -> dict[str, dict[str, Call]]:
        """Load its machine code: whoever wrote it can do what you can.

        Args:
            parts: By name, in the form that was compiled.
            device: Where their weights are.

        Returns:
            Of each part the compiled calls, by signature.

        Raises:
            MusiccmError: As `load_call`, or for a part that the model has not.
        """
        loaded: dict[str, dict[str, Call]] = {name: {} for name in parts}
        for call in self.calls:
            if call["part"] not in parts:
                raise MusiccmError(f"{self.folder / FILE}: expected parts {', '.join(parts)}, found {call['part']!r}; "
                                   f"{AGAIN}")
            owner, method = parts[call["part"]]
            loaded[call["part"]][call["signature"]] = load_call(owner, method, self.folder / call["file"],
                                                                call["weights"], device)
        return loaded


def _require_whole(folder: Path, call: Mapping[str, str]) -> None:
    name = call["file"]
    if Path(name).name != name:
        raise MusiccmError(f"{folder / FILE}: expected the name of a file beside it, found {name!r}; {AGAIN}")
    path = folder / name
    if not path.is_file() or file_sha256(path) != call["sha256"]:
        raise MusiccmError(f"{path}: missing, or other bytes than {FILE} states; {AGAIN}")
