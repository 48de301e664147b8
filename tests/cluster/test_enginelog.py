from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cluster.enginelog import TAIL_BYTES, read_log


def test_the_files_that_a_process_prints_to_are_found(tmp_path: Path) -> None:
    report = "import json, sys; from cluster.enginelog import output_files; json.dump(output_files(), sys.{})"
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        subprocess.run([sys.executable, "-c", report.format("stdout")], stdout=stdout, stderr=stderr, check=True)
    assert out.read_text() == f'["{out}", "{err}"]'
    with err.open("w") as both:
        subprocess.run([sys.executable, "-c", report.format("stdout")], stdout=both, stderr=both, check=True)
    assert err.read_text() == f'["{err}"]'
    piped = subprocess.run([sys.executable, "-c", report.format("stdout")], capture_output=True, text=True, check=True)
    assert piped.stdout == "[]"


def test_a_log_is_the_end_of_each_file_under_its_name(tmp_path: Path) -> None:
    out, err = tmp_path / "w.out", tmp_path / "w.err"
    out.write_text(":job_id:01\n:actor_name:Runner\nloading\n")
    err.write_bytes(b"x" * 100 + b"\xff" + b"y" * (TAIL_BYTES - 5) + b"last")
    log = read_log([str(out), str(err), str(tmp_path / "gone")], {})
    assert log is not None
    first, second = log.split("--- w.err\n")
    assert first == "--- w.out\nloading\n\n"
    # 100 + 1 + (TAIL - 5) + 4 = TAIL + 100 bytes: the hundred x are left out
    assert second == "[100 bytes before this are left out]\n�" + "y" * (TAIL_BYTES - 5) + "last"
    assert read_log([str(tmp_path / "gone")], {}) is None


def test_secrets_do_not_get_into_a_log(tmp_path: Path) -> None:
    path = tmp_path / "w.err"
    path.write_text("GET https://x/?token=hf_0123456789 sk-abcdefgh true /home/me\n")
    environment = {
        "HF_TOKEN": "hf_0123456789", "OPENAI_API_KEY": "sk-abcdefgh", "TOKENIZERS_PARALLELISM": "true",
        "HOME": "/home/me",
    }  # fmt: skip
    assert read_log([str(path)], environment) == (
        "--- w.err\nGET https://x/?token=[HF_TOKEN] [OPENAI_API_KEY] true /home/me\n"
    )
