"""Tests that need what a machine may lack are skipped there, saying what. MOECAP_REQUIRE=vllm,gpu makes them fail."""

from __future__ import annotations

import importlib.util
import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or leaves what this user's calibrations found."""
    os.environ["MOECAP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


REQUIRED = os.environ.get("MOECAP_REQUIRE", "").split(",")


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def has_several_gpus() -> bool:
    import torch

    return torch.cuda.device_count() > 1


def has_vllm() -> bool:
    return importlib.util.find_spec("vllm") is not None


NEEDS = {
    "gpu": (has_gpu, "needs a CUDA GPU"),
    "multi_gpu": (has_several_gpus, "needs several CUDA GPUs"),
    "vllm": (has_vllm, "needs vLLM, which is not installed here; scripts/test-vllm installs it and runs these tests"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for name, (is_there, why) in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(name)]
        if marked and name not in REQUIRED and not is_there():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=why))
