# SPDX-License-Identifier: Apache-2.0
"""What the overlay expects of upstream's Python, compared with a release by its syntax trees.

Patches that apply say nothing about the code around them. Three comparisons do, without an import:
names that the overlay imports exist; abstract methods of upstream's classes are there in ours; and
code that ours overrides or mirrors is as it was when somebody last read it.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

from tools.fork.project import PACKAGE

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


class Modules:
    """The Python modules of one tree, read when they are asked for.

    Args:
        files: paths in the tree, ``vllm/...``.
        read: text of one of them.
    """

    def __init__(self, files: Collection[str], read: Callable[[str], str]) -> None:
        self.files = frozenset(file for file in files if file.endswith(".py"))
        self.read = cache(read)
        self.tree = cache(lambda path: ast.parse(self.read(path)))
        self.names = cache(self._names)

    def path(self, module: str) -> str | None:
        """File of a module, or None where there is none."""
        stem = module.replace(".", "/")
        candidates = (f"{stem}.py", f"{stem}/__init__.py")
        return next((path for path in candidates if path in self.files), None)

    def has(self, module: str, name: str) -> bool:
        """Whether ``from module import name`` finds something."""
        path = self.path(module)
        if self.path(f"{module}.{name}") or (path and name in self.names(path)):
            return True
        if path is None:
            return False
        text = self.read(path)
        lazy = "def __getattr__" in text and f'"{name}"' in text
        return lazy or any(self.has(other, name) for other in self._starred(path))

    def find(self, module: str, name: str) -> tuple[str, Definition] | None:
        """Module and syntax tree of a class or function, followed through imports of it."""
        path = self.path(module)
        found = self.names(path).get(name) if path else None
        if isinstance(found, Definition):
            return module, found
        if path and isinstance(found, ast.ImportFrom):
            alias = next(a for a in found.names if (a.asname or a.name) == name)
            return self.find(_source(found, path), alias.name)
        return None

    def member(self, module: str, qualified: str) -> Definition | None:
        """A function, a class, or a method (``Class.method``) that a class has or inherits."""
        outer, _, inner = qualified.partition(".")
        found = self.find(module, outer)
        if found is None or not inner:
            return found and found[1]
        for _, owner in self.lineage(*found):
            for node in owner.body:
                if isinstance(node, Function) and node.name == inner:
                    return node
        return None

    def lineage(self, module: str, node: Definition) -> Iterator[tuple[str, ast.ClassDef]]:
        """A class and those that it derives from and are found here, nearest first."""
        if not isinstance(node, ast.ClassDef):
            return
        yield module, node
        for base in _base_names(node):
            if found := self.find(module, base):
                yield from self.lineage(*found)

    def abstract(self, module: str, node: Definition) -> set[str]:
        """Names of the methods that a class leaves to those that derive from it."""
        left: set[str] = set()
        for _, owner in reversed(list(self.lineage(module, node))):
            for method in owner.body:
                if isinstance(method, Function):
                    left.discard(method.name)
                    if any("abstractmethod" in ast.unparse(d) for d in method.decorator_list):
                        left.add(method.name)
        return left

    def _names(self, path: str) -> dict[str, ast.AST]:
        found: dict[str, ast.AST] = {}
        for node in _statements(self.tree(path).body):
            if isinstance(node, Definition):
                found[node.name] = node
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found |= {(a.asname or a.name).split(".")[0]: node for a in node.names}
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    names = (n.id for n in ast.walk(target) if isinstance(n, ast.Name))
                    found |= dict.fromkeys(names, node)
        return found

    def _starred(self, path: str) -> list[str]:
        """Modules of which a module imports everything."""
        nodes = (node for node in self.tree(path).body if isinstance(node, ast.ImportFrom))
        return [_source(node, path) for node in nodes if node.names[0].name == "*"]


@dataclass(frozen=True)
class Import:
    """One name that a module of the overlay imports from upstream."""

    module: str
    name: str
    line: int


class Overlay:
    """What the modules of the overlay use of upstream's.

    Args:
        modules: the overlay's.
    """

    def __init__(self, modules: Modules) -> None:
        self.modules = modules

    @cached_property
    def imports(self) -> dict[str, dict[str, Import]]:
        """By file and by the name that it has there."""
        return {path: dict(self._imports_of(path)) for path in sorted(self.modules.files)}

    def _imports_of(self, path: str) -> Iterator[tuple[str, Import]]:
        for node in ast.walk(self.modules.tree(path)):
            if isinstance(node, ast.ImportFrom):
                source = _source(node, path)
                for alias in node.names if source.split(".")[0] == PACKAGE else ():
                    own = self.modules.path(source) or self.modules.path(f"{source}.{alias.name}")
                    if not own and not self._is_folder(f"{source}.{alias.name}"):
                        yield alias.asname or alias.name, Import(source, alias.name, node.lineno)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith(f"{PACKAGE}.") and not self.modules.path(alias.name):
                        parent, _, name = alias.name.rpartition(".")
                        yield alias.asname or alias.name, Import(parent, name, node.lineno)

    def _is_folder(self, module: str) -> bool:
        return any(file.startswith(f"{module.replace('.', '/')}/") for file in self.modules.files)

    def derived(self) -> Iterator[tuple[str, ast.ClassDef, Import]]:
        """Classes of the overlay that derive from a class of upstream's: file, class, base."""
        for path, imports in self.imports.items():
            for node in ast.walk(self.modules.tree(path)):
                if isinstance(node, ast.ClassDef):
                    for base in _base_names(node):
                        if base in imports:
                            yield path, node, imports[base]

    def missing_names(self, upstream: Modules) -> list[str]:
        """In words, what the overlay imports and upstream does not have."""
        return [
            f"{path}:{used.line}: {used.module} has no {used.name}"
            for path, imports in self.imports.items()
            for used in imports.values()
            if not upstream.has(used.module, used.name)
        ]

    def missing_methods(self, upstream: Modules) -> list[str]:
        """In words, abstract methods of upstream's that a class of the overlay lacks."""
        problems = []
        for path, node, base in self.derived():
            found = upstream.find(base.module, base.name)
            own = {method.name for method in node.body if isinstance(method, Function)}
            lacking = sorted(upstream.abstract(*found) - own) if found else []
            problems += [
                f"{path}:{node.lineno}: {node.name} has no {name}, "
                f"which is abstract in {base.module}.{base.name}"
                for name in lacking
            ]
        return problems

    def overridden(self, upstream: Modules) -> set[str]:
        """Upstream's methods that the overlay overrides: ``module:Class.method``."""
        found = set()
        for _, node, base in self.derived():
            for method in node.body:
                if isinstance(method, Function) and method.name != "__init__":
                    place = f"{base.name}.{method.name}"
                    if upstream.member(base.module, place):
                        found.add(f"{base.module}:{place}")
        return found


ABSENT = "absent"
"""In place of the hash of what a release does not have."""


def fingerprint(node: Definition | None) -> str:
    """Hash of a definition that changes with its code, not with its comments and docstrings."""
    if node is None:
        return ABSENT
    return hashlib.sha256(code(node).encode()).hexdigest()[:16]


def code(node: Definition) -> str:
    """A function without its docstrings, or the fields of a class, as Python writes them."""
    if isinstance(node, ast.ClassDef):
        fields = [field for field in node.body if isinstance(field, ast.Assign | ast.AnnAssign)]
        return "".join(f"{ast.unparse(field)}\n" for field in fields)
    copy = ast.parse(ast.unparse(node))
    for inner in ast.walk(copy):
        if isinstance(inner, Definition) and ast.get_docstring(inner) is not None:
            inner.body = inner.body[1:] or [ast.Pass()]
    return f"{ast.unparse(copy)}\n"


def lookup(upstream: Modules, name: str) -> Definition | None:
    """What ``module:qualified`` names, or None."""
    module, _, qualified = name.partition(":")
    return upstream.member(module, qualified)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module that run when it is imported, those in blocks included."""
    for node in body:
        yield node
        for field in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _statements(getattr(node, field, []))
        for handler in getattr(node, "handlers", ()):
            yield from _statements(handler.body)


def _source(node: ast.ImportFrom, path: str) -> str:
    """The module that a statement in the file ``path`` imports from."""
    if not node.level:
        return node.module or ""
    folders = path.split("/")[: -node.level]
    return ".".join([*folders, *([node.module] if node.module else [])])


def _base_names(node: ast.ClassDef) -> list[str]:
    bases = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
    return [base.id for base in bases if isinstance(base, ast.Name)]
