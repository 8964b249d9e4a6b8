"""The shape of the house: which way imports go, what lies at the top, what `import tcircuits` costs, what is absent."""

import ast
import io
import re
import shutil
import subprocess
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tcircuits"

# Top to bottom; a module imports only what stands below it, or its own package. The last one imports nothing of ours.
LAYERS = (
    *("cli", "planning", "view", "circuits", "tasks", "interventions", "attribution", "transcoders", "data", "models"),
    *("assets", "parallel", "checkpoint", "files", "compiling", "numerics", "types"),
)
BESIDE = {"__init__", "__main__", "_version"}  # the front door, which re-exports, and the version
TOP = {
    *("tcircuits", "experiments", "tests", "tpu", "pyproject.toml", "README.md", "Makefile", "LICENSE", "CHANGELOG.md"),
    *("CITATION.cff", "requirements.lock", ".ci", ".gitignore"),
}
HEAVY = ("transformers", "matplotlib", "gguf", "tyro", "huggingface_hub", "playwright", "grain", "datasets")


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path, top: Path = ROOT) -> str:
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(path: Path, module: str) -> set[str]:
    """Absolute names of everything the file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def upward(module: str, imported: set[str]) -> list[str]:
    """Imports of `module` (a name within tcircuits) that go up the list, or round it through the front door."""
    layer = module.split(".")[1]
    wrong = []
    for name in sorted(n for n in imported if n.split(".")[0] == "tcircuits"):
        target = (*name.split("."), "")[1]
        if target in ("_version", layer):
            continue
        if target not in LAYERS:
            wrong.append(f"{module} imports {name}: import from the module that defines it")
        elif LAYERS.index(target) < LAYERS.index(layer):
            wrong.append(f"{module} imports {name}: {target} stands above {layer}")
    return wrong


def tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in names.split("\0") if name and (ROOT / name).exists()]


def test_imports_only_go_down():
    wrong = []
    for path in sources("tcircuits"):
        module = name_of(path)
        if module.split(".")[-1] not in BESIDE and module.split(".")[1:2] not in ([], ["cli"]):
            wrong += upward(module, imports(path, module))
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        ("tcircuits.models.forward", "from tcircuits.attribution import rows", "stands above"),
        ("tcircuits.numerics", "def f():\n    import tcircuits.parallel", "stands above"),
        ("tcircuits.models.forward", "from ..transcoders.config import Kind", "stands above"),
        ("tcircuits.models.forward", "import tcircuits as tc", "module that defines it"),
        ("tcircuits.models.forward", "from tcircuits import attribute", "module that defines it"),
        ("tcircuits.models.forward", "from tcircuits.models.config import X\nfrom tcircuits.types import Array", None),
    ],
)
def test_the_import_rule_catches(tmp_path, module, text, complaint):
    path = tmp_path / "module.py"
    path.write_text(text)
    wrong = upward(module, imports(path, module))
    assert (complaint is None) == (wrong == [])
    assert complaint is None or complaint in wrong[0]


def test_every_module_has_its_floor():
    floors = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert floors - {"__pycache__"} <= {*LAYERS, *BESIDE}


def test_only_checkpoint_imports_orbax_and_nothing_imports_torch():
    found = {
        (name_of(path), package)
        for path in sources("tcircuits", "experiments", "tpu")
        for package in {name.split(".")[0] for name in imports(path, name_of(path))} & {"orbax", "torch"}
    }
    assert found <= {("tcircuits.checkpoint", "orbax")}


def test_experiments_and_tests_are_not_imported_by_the_package():
    wrong = {
        (name_of(path), name)
        for path in sources("tcircuits")
        for name in imports(path, name_of(path))
        if name.split(".")[0] in ("experiments", "tests")
    }
    assert wrong == set()


def test_the_top_level_holds_nothing_else():
    assert {path.parts[0] for path in tracked()} <= TOP


def test_no_large_file_is_tracked():
    sizes = {path: (ROOT / path).stat().st_size for path in tracked()}
    assert {
        str(path): size for path, size in sizes.items() if size > 4_000_000
    } == {}  # a layer of the export is 3.99 MB
    assert sum(sizes.values()) < 40_000_000


def test_import_starts_no_backend_and_loads_nothing_heavy(run_python):
    program = f"""
import sys
import tcircuits
from jax._src import xla_bridge
print(sorted(name for name in {HEAVY!r} if name in sys.modules), len(xla_bridge._backends))
"""
    assert run_python(program).stdout.split("\n")[-2] == "[] 0"


def comments(path: Path) -> list[tuple[int, str]]:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


def test_no_check_is_suppressed():
    pattern = re.compile(r"#\s*(type:\s*ignore|pyrefly:|pyright:|mypy:|noqa|ruff:)", re.IGNORECASE)
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sources("tcircuits", "experiments", "tests", "tpu")
        for line, text in comments(path)
        if pattern.search(text)
    ]
    assert wrong == []


def test_nothing_is_left_unfinished():
    wrong = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in sources("tcircuits", "experiments", "tpu")
        for word in ("TODO", "FIXME", "NotImplementedError")
        if word in path.read_text(encoding="utf-8")
    ]
    assert wrong == []


def test_no_function_is_longer_than_sixty_lines():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1}"
        for path in sources("tcircuits", "experiments", "tpu")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None and node.end_lineno - node.lineno >= 60
    ]
    assert wrong == []


def locked() -> dict[str, set[str]]:
    """Versions by name; each line is a name, a version and perhaps a marker, so no address can hide in it."""
    versions: dict[str, set[str]] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9a-z.+!]+)( ; [\w .'=<>!()-]+)?", line)
        assert match, line
        versions.setdefault(match[1], set()).add(match[2])
    return versions


def test_the_lock_file_holds_every_requirement_and_the_oldest_jax():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras, groups = project["project"]["optional-dependencies"], project["dependency-groups"]
    wanted = [*project["project"]["dependencies"], *extras["demo"], *extras["plot"]]
    wanted += [line for name in ("test", "notebook", "lint") for line in groups[name]]
    names = {re.split(r"[<>=\[ ]", line)[0].lower().replace("_", "-") for line in wanted}
    assert names - locked().keys() == set()
    floor = next(line.split(">=")[1] for line in wanted if line.startswith("jax>="))
    assert floor in locked()["jax"], "Python 3.11 tests the oldest supported jax"


def test_the_version_is_the_same_everywhere():
    version = re.search(r'"(.+)"', (PACKAGE / "_version.py").read_text(encoding="utf-8").split("__version__")[1])
    assert version is not None
    assert f"version: {version[1]}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
