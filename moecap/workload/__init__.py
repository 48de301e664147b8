"""Workloads: where prompts come from, one file each. `WORKLOADS` maps the type in a study to `module:Class`.

A workload is a pydantic model whose fields are the options a study may write, with one method to write, `draw`.
`arrivals` says when the requests of an open loop come, whatever the workload.
"""

from __future__ import annotations

WORKLOADS: dict[str, str] = {
    "synthetic": "moecap.workload.synthetic:Synthetic",
    "tasks": "moecap.workload.tasks:Tasks",
    "jsonl": "moecap.workload.jsonl:Jsonl",
    "trace": "moecap.workload.trace:Trace",
}
