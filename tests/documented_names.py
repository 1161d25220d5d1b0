"""What an example in Python takes from elsewhere, by its text alone: modules, attributes, arguments."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
from pydoc import locate
from typing import Any, get_type_hints

from torch import nn

#: Names that an example takes as given, by page.
GIVEN = {
    "docs/long.md": {"Pipeline", "read_clip", "play", "tired"},
    "docs/speed.md": {"Pipeline", "folder"},
    "docs/dual_path.md": {"ChunkWindows", "fill_piece", "FrameNoise", "tokens_of", "stepper", "condition", "frames",
                          "seed", "clean_BCTF", "held_T"},
    "docs/objectives/clap_tuning.md": {"self", "batch", "z0", "x0_pred", "cond_BD", "generator", "weight_B"},
}
#: Where those of them are from that are the package's.
OURS = {
    "Pipeline": "musiccm.Pipeline", "read_clip": "musiccm.long_form.clip.read_clip",
    "ChunkWindows": "musiccm.samplers.chunks.ChunkWindows", "fill_piece": "musiccm.samplers.chunks.fill_piece",
    "FrameNoise": "musiccm.samplers.noise.FrameNoise",
}


def faults(page: str, block: str) -> list[str]:
    """What a block names that is not there.

    Args:
        page: Where it stands.
        block: Its text, which must compile.

    Returns:
        A sentence for each.
    """
    names, tree = Names(page), ast.parse(block, page)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.bound.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.bound.add(node.id)
        elif isinstance(node, ast.arg):
            names.bound.add(node.arg)
    names.visit(tree)
    return names.faults


class Instance:
    """An object of a class."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        #: What a call of the object runs.
        self.call = next((vars(base)["__call__"] for base in kind.__mro__ if "__call__" in vars(base)), None)

    def __getattr__(self, name: str) -> Any:
        set_at_start = f"self.{name} " in inspect.getsource(self.kind)
        if hasattr(self.kind, name) or name in getattr(self.kind, "__annotations__", {}) or set_at_start:
            return getattr(self.kind, name, None)
        raise AttributeError(name)


class Names(ast.NodeVisitor):
    """What a block of Python takes from elsewhere, and whether it is there.

    Args:
        page: Where it stands.
    """

    def __init__(self, page: str) -> None:
        self.page = page
        given = GIVEN.get(page, set())
        self.known: dict[str, Any] = {name: locate(OURS[name]) for name in given if name in OURS}
        self.faults = [f"{OURS[name]} is not there" for name, found in self.known.items() if found is None]
        self.bound = set(given) | set(dir(builtins))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.known[alias.asname or alias.name] = importlib.import_module(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module == "__future__":
            return
        module = importlib.import_module(node.module or "")
        for alias in node.names:
            if not hasattr(module, alias.name):
                self.faults.append(f"{node.module} has no {alias.name}")
            self.known[alias.asname or alias.name] = getattr(module, alias.name, None)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.known[target.id] = self.value(node.value)
            self.visit(target)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id not in self.bound and node.id not in self.known:
            self.faults.append(f"{node.id} comes from nowhere")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.visit(node.value)
        owner = self.value(node.value)
        if owner is not None and not hasattr(owner, node.attr):
            self.faults.append(f"{ast.unparse(node)} is not there")

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = self.value(node.func)
        called = called.call if isinstance(called, Instance) else called
        try:
            signature = inspect.signature(called) if called is not None else None
        except (TypeError, ValueError):
            return
        if signature and not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            for keyword in node.keywords:
                if keyword.arg is not None and keyword.arg not in signature.parameters:
                    self.faults.append(f"{ast.unparse(node.func)} takes no {keyword.arg}")

    def value(self, node: ast.AST) -> Any:
        """What an expression is, as far as annotations tell."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.value(node.value)
            return getattr(owner.kind if isinstance(owner, Instance) else owner, node.attr, None)
        if isinstance(node, ast.Call):
            called = self.value(node.func)
            called = called.call if isinstance(called, Instance) else called
            if inspect.isclass(called):
                return Instance(called)
            try:
                returned = get_type_hints(called).get("return")
            except (TypeError, NameError):
                return None
            owner = self.value(node.func.value) if isinstance(node.func, ast.Attribute) else None
            if "Self" in str(returned):
                returned = owner.kind if isinstance(owner, Instance) else owner
            return Instance(returned) if inspect.isclass(returned) and returned is not nn.Module else None
        return None
