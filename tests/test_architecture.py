"""The shape of the code is tested like its behaviour: layers, names, types, style."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "kernels" / "gemm"
NAME = re.compile(
    r"(gemm_(?:q8|f32)_(?:q8|q4|q3|q2|t2|f16|f32)_f32)_\d+x(?:16|32|64)x\d+"
    r"_(scalar|neon|neon_dotprod|neon_i8mm|avx2|avx_vnni|avx512_vnni)"
)


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def kernel_rows() -> list[str]:
    text = (KERNELS / "kernels.inc").read_text()
    return re.findall(r"\bgemm_\w+", re.sub(r"//.*", "", text))


def test_imports_point_left() -> None:
    run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache")


def test_ruff_finds_nothing() -> None:
    run(sys.executable, "-m", "ruff", "check")
    run(sys.executable, "-m", "ruff", "format", "--check")


def test_mypy_finds_nothing() -> None:
    run(sys.executable, "-m", "mypy")


def test_every_module_opens_with_a_sentence() -> None:
    for path in (ROOT / "edgekit").rglob("*.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring, f"{path.relative_to(ROOT)} has no docstring"
        assert docstring.splitlines()[0].endswith((".", ":")), f"{path.relative_to(ROOT)}: {docstring.splitlines()[0]}"


def test_every_row_of_the_kernel_table_follows_the_grammar() -> None:
    rows = kernel_rows()
    assert rows
    for name in rows:
        assert NAME.fullmatch(name), name
    assert len(rows) == len(set(rows))


def test_every_kernel_in_the_table_stands_in_the_file_of_its_name() -> None:
    for name in kernel_rows():
        match = NAME.fullmatch(name)
        assert match is not None
        path = KERNELS / match[2] / f"{match[1]}.cc"
        assert path.exists(), f"{name}: no {path.relative_to(ROOT)}"
        assert name in path.read_text(), f"{path.relative_to(ROOT)} does not define {name}"


def test_every_kernel_file_has_a_row() -> None:
    rows = [NAME.fullmatch(name) for name in kernel_rows()]
    known = {(row[2], row[1]) for row in rows if row}
    for path in KERNELS.glob("*/gemm_*.cc"):
        assert (path.parent.name, path.stem) in known, path.relative_to(ROOT)


@pytest.mark.parametrize("name", ["compile", "test"])
def test_the_readme_has_a_command_on_one_line_marked(name: str) -> None:
    text = (ROOT / "README.md").read_text()
    match = re.search(rf"<!-- {name} -->\n```\w*\n(.+)\n```", text)
    assert match is not None
    assert match[1].startswith("python3 -m venv .venv && ")


def test_every_command_of_the_help_is_in_the_readme() -> None:
    from edgekit.cli import main

    text = (ROOT / "README.md").read_text()
    for name in main.commands:
        assert f"edgekit {name}" in text, name


def test_every_path_in_the_readme_exists() -> None:
    paths = re.findall(r"`((?:edgekit|kernels|targets|devices|tests)/[\w./-]*)`", (ROOT / "README.md").read_text())
    assert len(paths) >= 4
    for path in paths:
        assert (ROOT / path).exists(), path


def test_the_project_speaks_of_no_machine_path() -> None:
    done = subprocess.run(
        ["git", "grep", "-nIE", r"/(home|root|work)/[a-z]", "--", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.stdout == ""
