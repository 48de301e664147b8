"""`moecap-cluster doctor` on a real Ray, and how findings read."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from cluster.cli import main
from cluster.doctor import Examination, examination_text
from moecap.doctor.finding import Finding

LONG = "words " * 30


def test_this_machine_can_measure(ray_address: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", "--address", ray_address, "--store", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    (machine,) = document["nodes"]
    found = {one["what"]: one for one in machine["findings"]}
    assert found["engine transformers"]["state"] == "ok"
    assert str(tmp_path) in found["store"]["detail"]
    assert {one["state"] for one in found.values()} <= {"ok", "limited", "missing"}
    assert [one["state"] for one in document["fleet"]] == ["ok"]
    assert document["needed"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_a_file_exits_with_1_and_says_so(ray_address: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, ["doctor", "--address", ray_address, "--store", str(tmp_path / "file")])
    assert result.exit_code == 1
    assert "nothing can be measured without: store" in result.stderr
    assert "missing  store" in result.stdout


def test_findings_are_tables_with_their_remedies_below() -> None:
    findings = [
        Finding(what="clock", state="ok", detail="tsc", remedy="none is shown"),
        Finding(what="store", state="missing", detail=LONG.strip(), remedy="free some", needed=True),
    ]
    found = Examination(nodes={"n": findings}, fleet=[Finding(what="Ray", state="ok", detail="2.60")])
    lines = examination_text(found).splitlines()
    assert [line.rstrip() for line in lines[:1] + lines[3:4]] == ["n", "ok       clock  tsc"]
    assert lines[7].strip() == "-> free some"  # 30 words are 3 lines of at most 14
    assert max(map(len, lines)) <= 7 + 2 + 5 + 2 + 88
    assert lines[-1] == "ok     Ray   2.60"
    assert found.needed == [f"store (n): {LONG.strip()}; free some"]
