"""Engines: what serves tokens, one file each. `ENGINES` maps the name in a study to `module:Class`."""

from __future__ import annotations

ENGINES: dict[str, str] = {
    "fake": "moecap.engine.fake:FakeEngine",
    "transformers": "moecap.engine.transformers:TransformersEngine",
    "vllm": "moecap.engine.vllm:VllmEngine",
}
