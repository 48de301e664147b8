"""Who may import whom: Ray only in `cluster`, one direction inside `moecap`, nothing heavy before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = {"records", "errors", "dtypes", "registry", "packaged", "moecap"}
"""What everything may use. `moecap` is the package itself: its version."""
MAY_IMPORT: dict[str, set[str]] = {
    "moecap": set(),
    "errors": set(),
    "records": set(),
    "dtypes": set(),
    "registry": {"errors"},
    "packaged": {"errors"},
    "schema": {"records"},
    "overrides": BASE,
    "model": BASE | {"reference"},
    "hardware": BASE,
    "reference": BASE,
    "accuracy": BASE | {"reference"},
    "workload": BASE | {"accuracy", "reference", "model"},
    "telemetry": BASE,
    "windows": BASE,
    "trials": BASE | {"windows", "workload"},
    "probe": BASE | {"model", "schema"},
    "objects": BASE | {"schema"},
    "lease": BASE | {"objects"},
    "store": BASE | {"schema", "objects"},
    "engine": BASE | {"model", "hardware", "probe"},
    "prices": BASE | {"hardware"},
    "study_loads": BASE,
    "study": BASE
    | {"accuracy", "engine", "hardware", "model", "overrides", "prices", "store", "study_loads", "workload"},
    "run": BASE
    | {"accuracy", "engine", "hardware", "model", "schema", "store", "telemetry", "trials", "windows", "workload"},
    "doctor": BASE | {"engine", "hardware", "telemetry"},
    "metrics": BASE | {"hardware", "model", "schema", "store", "prices", "windows"},
    "predict": BASE | {"hardware", "model", "store"},
    "report": BASE | {"predict", "schema", "store", "metrics"},
}
HEAVY = ("ray", "torch", "vllm", "transformers", "matplotlib", "pyarrow", "pydantic")


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it, `if TYPE_CHECKING:` included: it is the flow that counts."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(path: Path) -> str:
    """`moecap/engine/fake.py` -> `engine`; `moecap/run.py` -> `run`; `moecap/__init__.py` -> `moecap`."""
    first = path.relative_to(ROOT / "moecap").parts[0]
    return "moecap" if first == "__init__.py" else first.removesuffix(".py")


SOURCES = sorted((ROOT / "moecap").rglob("*.py"))
PARTS = {part_of(path) for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_moecap_imports_neither_ray_nor_cluster(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imports(path)}
    assert not tops & {"ray", "cluster"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is new: say here what it may import"
    used = {name.split(".")[1] for name in imports(path) if name.startswith("moecap.")} & PARTS
    assert used <= MAY_IMPORT[part] | {part}


def test_the_flow_has_no_circle() -> None:
    left = {part: allowed & set(MAY_IMPORT) for part, allowed in MAY_IMPORT.items()}
    while left:
        free = [part for part, needs in left.items() if not needs & set(left)]
        assert free, f"these import each other: {sorted(left)}"
        for part in free:
            del left[part]


@pytest.mark.parametrize(
    "statement",
    [
        "import moecap, cluster",
        "import cluster.cli",
        "from cluster.cli import main; main(['--help'])",
        "from cluster.cli import main; main(['devices'])",
        "from cluster.cli import main; main(['devices', 'NVIDIA L4', '--json'])",
    ],
)
def test_nothing_heavy_is_loaded_early(statement: str) -> None:
    report = f"import sys, atexit; atexit.register(lambda: print('LOADED', *[m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{report}\n{statement}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_pure_decisions_need_no_ray() -> None:
    """Placement and lifecycle are decided without Ray, Arrow or an engine."""
    loaded = "print([name for name in ('ray', 'torch') if name in sys.modules])"
    statement = f"import sys, cluster.lifecycle, cluster.place, cluster.agenda; {loaded}"
    done = subprocess.run(
        [sys.executable, "-c", statement], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.strip() == "[]"
