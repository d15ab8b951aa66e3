"""Who may import whom, what importing brings in, and the budgets of the code."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import entropy_probe

ROOT = Path(__file__).parents[1]
FILES = sorted(p for name in ("entropy_probe", "sae_steering") for p in (ROOT / name).rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

# What these parts of entropy_probe may import of ours, also inside functions. All other parts,
# such as training, build on them, and may import anything but the command line.
ALLOWED = {
    "entropy": set(),
    "forking": set(),
    "drawing": set(),
    "figures": set(),
    "intervals": {"figures"},
    "hypotheses": {"figures", "intervals"},
    "capability": {"figures"},
    "switches": {"figures"},
    "comparing": {"forking"},
    "tempering": {"entropy", "models"},
    "advantages": set(),
    "loss": set(),
    "editing": set(),
    "hooks": {"editing"},
    "kvcache": set(),
    "provenance": set(),
    "keeping": {"drawing", "forking"},
    "rollout": {"provenance", "viewing"},  # the page, when a notebook asks for it
    "tasks": set(),
    "storage": {"rollout", "provenance"},
    "viewing": {"rollout", "provenance", "forking"},
    "models": {"editing", "hooks", "organisms"},
    "organisms": {"models", "tasks", "figures", "forking", "sampling", "capability"},
    "slots": {"kvcache"},
    "fixed_cache": {"kvcache"},
    "compiled_step": {"fixed_cache", "hooks", "kvcache", "models"},
    "describing": {"drawing", "entropy"},
    "decoding_loop": {"compiled_step", "describing", "hooks", "keeping", "kvcache"}
    | {"models", "slots"},
    "liger": {"entropy", "models"},
}
# What releases of transformers from 5.0 on have; before a name is added, look into 5.0, which
# pyproject.toml allows.
TRANSFORMERS = {
    "transformers": {
        "AutoModelForCausalLM", "AutoTokenizer", "GenerationConfig", "LlamaConfig",
        "LlamaForCausalLM", "PreTrainedModel", "PreTrainedTokenizerBase",
        "PreTrainedTokenizerFast", "cache_utils",
    },
    "transformers.cache_utils": {
        "Cache", "DynamicCache", "DynamicLayer", "DynamicSlidingWindowLayer",
    },
    "transformers.modeling_utils": {"ALL_ATTENTION_FUNCTIONS"},
    "transformers.utils": {"logging"},
}  # fmt: skip
MATHS = ("entropy", "forking", "drawing", "advantages", "loss", "features", "comparing")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def unit(module: str) -> str:
    """Give the part of entropy_probe that a module belongs to: its row in the table."""
    parts = module.split(".")
    if parts[:3] == ["entropy_probe", "models", "organisms"]:
        return "organisms"
    return parts[1] if parts[0] == "entropy_probe" and len(parts) > 1 else parts[0]


def only_for_types(tree: ast.Module) -> set[ast.AST]:
    blocks = (
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
    )
    return {inner for block in blocks for inner in ast.walk(block)}


def imports(path: Path, tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Give each module that a file imports, and whether a function does so when called."""
    package = module_of(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    inside = {inner for function in functions for inner in ast.walk(function)}
    for node in set(ast.walk(tree)) - only_for_types(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(base + (node.module.split(".") if node.module else []))
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield (name if name in MODULES else base), node in inside


def ours(name: str) -> bool:
    return name.split(".")[0] in ("entropy_probe", "sae_steering")


def is_verb(module: str) -> bool:
    """Tell whether a module is part of sae_steering's own verbs, which speak as ours do."""
    return module.split(".")[:2] == ["sae_steering", "cli"]


def offences(path: Path, tree: ast.Module) -> list[str]:
    """Say which imports of a file the table does not allow."""
    mine, found = unit(module_of(path)), []
    for name, _ in imports(path, tree):
        top, other = name.split(".")[0], unit(name)
        if top in ("analyses", "tests", "notebooks"):
            found.append(f"{name} is no part of the package")
        if mine in MATHS and (top == "transformers" or name.startswith("torch.distributed")):
            found.append(f"{name} is not for the maths")
        if not ours(name) or other == mine or name == "entropy_probe":
            continue
        if other == "cli" and not (mine == "__main__" or is_verb(module_of(path))):
            found.append("nothing imports the command line")
        if top == "sae_steering" and not module_of(path).startswith("sae_steering"):
            found.append("sae_steering builds on entropy_probe, never back")
        if other not in ALLOWED.get(mine, {other}):
            found.append(f"{mine} may not import {name}")
    return found


def test_imports_go_one_way():
    found = {path: offences(path, tree) for path, tree in TREES.items()}
    assert {module_of(path): what for path, what in found.items() if what} == {}


def test_only_what_the_oldest_transformers_has_is_taken_from_it():
    taken = {
        (node.module, alias.name)
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers")
        for alias in node.names
        if not node.level
    }
    known = {(module, name) for module, names in TRANSFORMERS.items() for name in names}
    assert taken - known == set()
    assert ("transformers.cache_utils", "Cache") in taken


@pytest.mark.parametrize(
    ("module", "line", "offence"),
    [
        ("entropy", "from .rollout import Rollouts", "entropy may not import"),
        ("forking", "def f():\n    import transformers", "not for the maths"),
        ("storage.tables", "from entropy_probe.sampling import sample", "storage may not import"),
        ("viewing.page", "import entropy_probe.models.prompts", "viewing may not import"),
        ("sampling", "from entropy_probe import cli", "nothing imports the command line"),
        ("sampling", "import sae_steering", "never back"),
        ("capturing", "from analyses import benchmarks", "no part of the package"),
        ("cli.group", "import sae_steering.cli", "never back"),
    ],
)
def test_a_wrong_import_is_seen(module, line, offence):
    path = MODULES[f"entropy_probe.{module}"]
    assert any(offence in found for found in offences(path, ast.parse(line)))


def test_no_two_modules_need_each_other_to_load():
    graph = {
        module: {n for n, late in imports(p, TREES[p]) if n in MODULES and not late and n != module}
        for module, p in MODULES.items()
    }
    while leaves := {m for m, needed in graph.items() if not needed}:
        graph = {m: needed - leaves for m, needed in graph.items() if m not in leaves}
    assert graph == {}


# What importing brings in


def loaded_after(code: str) -> tuple[set[str], str]:
    """Run code in a fresh interpreter; give the packages that it loaded, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('|'.join(sys.modules), end='')"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    printed, _, modules = done.stdout.rpartition("\n")
    return {name.partition(".")[0] for name in modules.split("|")}, printed + done.stderr


HEAVY = {"torch", "transformers", "numpy", "pandas", "pyarrow", "plotly", "jaxtyping", "click"}


def test_importing_both_packages_brings_in_nothing_heavy_and_says_nothing():
    loaded, printed = loaded_after("import entropy_probe, sae_steering; dir(entropy_probe)")
    assert {"entropy_probe", "sae_steering"} <= loaded
    assert not loaded & HEAVY
    assert printed == ""


def test_the_maths_and_the_record_do_without_transformers():
    names = "advantages, drawing, entropy, forking, hooks, keeping, loss, provenance, rollout"
    loaded, printed = loaded_after(f"from entropy_probe import {names}")
    assert "torch" in loaded  # so the test can see what is loaded
    assert "transformers" not in loaded
    assert printed == ""


@pytest.mark.parametrize("name", entropy_probe.__all__)
def test_public_names_resolve_on_first_use(name):
    value = getattr(entropy_probe, name)
    assert callable(value)
    assert value.__module__.startswith("entropy_probe.")
    assert value.__doc__
    assert name in dir(entropy_probe)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'entropy_probe' has no attribute 'sampel'"):
        _ = entropy_probe.sampel


# Budgets and bans


def test_a_module_has_at_most_300_lines_and_a_function_50():
    over = {}
    for module, path in MODULES.items():
        over[module] = len(path.read_text().splitlines()) - 300
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                over[f"{module}.{node.name}"] = lines - 50
    assert {name: lines for name, lines in over.items() if lines > 0} == {}


def test_forward_hooks_are_registered_in_one_file():
    names = {p.name for p, tree in TREES.items() if "register_forward" in ast.unparse(tree)}
    assert names == {"hooks.py"}


def test_frozen_records_say_what_each_field_is():
    silent = []
    for module, path in MODULES.items():
        for node in ast.walk(TREES[path]):
            if not isinstance(node, ast.ClassDef) or not is_frozen(node):
                continue
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if isinstance(field, ast.AnnAssign) and not said:
                    silent.append(f"{module}: {ast.unparse(field)}")
    assert silent == []


def is_frozen(node: ast.ClassDef) -> bool:
    return any("frozen=True" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_no_error_is_swallowed_and_annotations_are_real():
    found = []
    for module, path in MODULES.items():
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.ExceptHandler):
                kind = "" if node.type is None else ast.unparse(node.type)
                if kind in ("", "Exception", "BaseException"):
                    found.append(f"{module}, line {node.lineno}: except {kind}")
            if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                found.append(module)
    assert found == []
